"""How many problems a model solves: one greedy answer each, judged by the rule of the problem's kind.

    found = measure(model, tokenizer, problems, config, end_ids=ends)
    found.value, found.stderr

The standard error is the binomial one, sqrt(p (1 - p) / (n - 1)). An answer that could not be judged counts in neither, and is told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rorqual.inference.llm import LLM
from rorqual.inference.params import SamplingParams
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
    """Share of right answers over the judged ones, NaN without any; `cut` answers reached the length limit and count as wrong."""

    answers: list[Solved]
    cut: int

    @property
    def judged(self) -> int:
        """Answers that have a verdict."""
        return sum(one.right is not None for one in self.answers)

    @property
    def value(self) -> float:
        """From 0 to 1."""
        return sum(bool(one.right) for one in self.answers) / self.judged if self.judged else math.nan

    @property
    def stderr(self) -> float:
        """Standard error of `value`."""
        n = self.judged
        return math.sqrt(self.value * (1 - self.value) / (n - 1)) if n > 1 else math.nan


def measure(
    model: CausalLM, tokenizer: Tokenizer, problems: Sequence[Problem], config: GRPOConfig, *, end_ids: Sequence[int] = (), plain: str | None = None,
    stop: tuple[str, ...] = (),
) -> Accuracy:  # fmt: skip
    """Answers every problem once, greedily, with at most config.max_new_tokens tokens, as a conversation in config.style.

    `plain` is a text with {question} in it that stands for the conversation: what a model that has never seen one is asked with, whose
    answer ends at a `stop` string.
    """
    llm = LLM.from_model(model, tokenizer, max_num_seqs=64, end_ids=end_ids)
    rules = Rewards(replace(config, rewards={"accuracy": 1.0}))
    params = SamplingParams(max_tokens=config.max_new_tokens, temperature=0, stop=stop)
    try:
        if plain is None:
            prompts = [render_prompt(problem.messages, tokenizer, config) for problem in problems]
            found = llm.generate([prompt.ids for prompt in prompts], params)
            parsed = [
                parse(Answer(prompt.ids, out.outputs[0].token_ids, out.outputs[0].finish_reason == "length"), tokenizer, config.style, prompt.reasoning, llm.engine.end_ids)
                for prompt, out in zip(prompts, found, strict=True)
            ]  # fmt: skip
        else:
            found = llm.generate([plain.format(question=problem.question) for problem in problems], params)
            parsed = [
                Answer(out.prompt_token_ids, one.token_ids, one.finish_reason == "length", text=one.text, content=one.text)
                for out in found for one in out.outputs
            ]  # fmt: skip
        verdicts = [judged.outcomes["accuracy"].verdict for judged in rules.judge_all(list(zip(problems, parsed, strict=True)))]
    finally:
        rules.close()
    right = {"right": True, "wrong": False, "unknown": None}
    answers = [Solved(p.question, p.answer or "", a.text, right[verdict]) for p, a, verdict in zip(problems, parsed, verdicts, strict=True)]
    return Accuracy(answers, sum(answer.cut for answer in parsed))
