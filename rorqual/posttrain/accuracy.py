"""How many problems a model solves: some sampled answers each, or one greedy one, judged by the rule of the problem's kind.

    found = measure(model, tokenizer, problems, config, end_ids=ends, samples=4)
    found.value, found.stderr

The value is pass@1: the mean over problems of the share of right answers; its standard error is that of a mean over problems, which are
what was drawn. An answer that could not be judged counts in neither, and is told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from rorqual.inference.llm import LLM
from rorqual.inference.params import SamplingParams
from rorqual.inference.sampler import key
from rorqual.posttrain.presets import GRPOConfig
from rorqual.posttrain.problems import Problem
from rorqual.posttrain.rewards import Rewards
from rorqual.posttrain.rollout import Answer, parse, render_prompt

if TYPE_CHECKING:
    from rorqual.model.transformer import CausalLM
    from rorqual.tokenizer.bpe import Tokenizer


@dataclass(frozen=True)
class Solved:
    """One problem with what was answered; `right` is None where nobody could judge."""

    question: str
    gold: str
    text: str
    right: bool | None


@dataclass(frozen=True)
class Accuracy:
    """All answers, those to one problem one after the other; `cut` of them reached the length limit and count as wrong."""

    answers: list[Solved]
    cut: int
    samples: int = 1

    @property
    def shares(self) -> list[float]:
        """Of each problem with a judged answer, the share of right ones."""
        groups = [self.answers[first : first + self.samples] for first in range(0, len(self.answers), self.samples)]
        judged = [[one.right for one in group if one.right is not None] for group in groups]
        return [sum(group) / len(group) for group in judged if group]

    @property
    def value(self) -> float:
        """From 0 to 1; NaN where nothing was judged."""
        return fmean(self.shares) if self.shares else math.nan

    @property
    def stderr(self) -> float:
        """Standard error of `value`; NaN for fewer than two problems."""
        return stdev(self.shares) / math.sqrt(len(self.shares)) if len(self.shares) > 1 else math.nan


def measure(
    model: CausalLM, tokenizer: Tokenizer, problems: Sequence[Problem], config: GRPOConfig, *, end_ids: Sequence[int] = (), plain: str | None = None,
    stop: tuple[str, ...] = (), samples: int | None = None,
) -> Accuracy:  # fmt: skip
    """Answers every problem with at most config.max_new_tokens tokens, as a conversation in config.style: `samples` times at config.temperature, or
    once greedily without that.

    `plain` is a text with {question} in it that stands for the conversation: what a model that has never seen one is asked with, whose
    answer ends at a `stop` string.
    """
    llm = LLM.from_model(model, tokenizer, max_num_seqs=64, end_ids=end_ids)
    rules = Rewards(replace(config, rewards={"accuracy": 1.0}))
    n, temperature = (1, 0.0) if samples is None else (samples, config.temperature)
    params = [
        SamplingParams(
            max_tokens=config.max_new_tokens, temperature=temperature, n=n, seed=key(config.seed, 0, number, "accuracy"), stop=stop
        )
        for number in range(len(problems))
    ]
    try:
        if plain is None:
            prompts = [render_prompt(problem.messages, tokenizer, config) for problem in problems]
            found = llm.generate([prompt.ids for prompt in prompts], params)
            parsed = [
                parse(Answer(prompt.ids, one.token_ids, one.finish_reason == "length"), tokenizer, config.style, prompt.reasoning, llm.engine.end_ids)
                for prompt, out in zip(prompts, found, strict=True) for one in out.outputs
            ]  # fmt: skip
        else:
            found = llm.generate([plain.format(question=problem.question) for problem in problems], params)
            parsed = [
                Answer(out.prompt_token_ids, one.token_ids, one.finish_reason == "length", text=one.text, content=one.text)
                for out in found for one in out.outputs
            ]  # fmt: skip
        asked = [problem for problem in problems for _ in range(n)]
        verdicts = [judged.outcomes["accuracy"].verdict for judged in rules.judge_all(list(zip(asked, parsed, strict=True)))]
    finally:
        rules.close()
    right = {"right": True, "wrong": False, "unknown": None}
    answers = [Solved(p.question, p.answer or "", a.text, right[verdict]) for p, a, verdict in zip(asked, parsed, verdicts, strict=True)]
    return Accuracy(answers, sum(answer.cut for answer in parsed), n)
