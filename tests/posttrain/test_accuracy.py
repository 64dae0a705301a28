"""Accuracy on problems: greedy answers, the rule's verdicts, a standard error by hand."""

from __future__ import annotations

import math

import pytest

from rorqual.inference.llm import LLM, CompletionOutput, RequestOutput
from rorqual.posttrain import accuracy
from rorqual.posttrain.accuracy import Accuracy, Solved, measure
from rorqual.posttrain.presets import GRPOConfig
from rorqual.posttrain.problems import Problem
from tests.checkpoint.folders import build
from tests.tiny import t0
from tests.tokenizer.samples import tokenizer


def problem(question: str, answer: str) -> Problem:
    return Problem(question, ({"role": "user", "content": question},), answer, "math")


def test_the_standard_error_by_hand() -> None:
    """3 right, 1 wrong, 1 not judged: 0.75, sqrt(0.75 x 0.25 / 3) = 0.25. Two answers each: 1, 0.5, and one judged that is wrong: 0.5, 0.5 / sqrt 3."""
    found = Accuracy([Solved("q", "1", "", verdict) for verdict in (True, True, True, False, None)], 0)
    assert (len(found.shares), found.value, found.stderr) == (4, 0.75, pytest.approx(0.25))
    twice = Accuracy([Solved("q", "1", "", verdict) for verdict in (True, True, True, False, None, False)], 0, 2)
    assert twice.shares == [1.0, 0.5, 0.0] and twice.value == 0.5 and twice.stderr == pytest.approx(0.5 / math.sqrt(3))
    assert math.isnan(Accuracy([], 0).value) and math.isnan(Accuracy([Solved("q", "1", "", True)], 0).stderr)


@pytest.mark.parametrize("plain", [None, "Question: {question}\n"])
def test_answers_are_judged_by_the_rule(monkeypatch: pytest.MonkeyPatch, plain: str | None) -> None:
    words = tokenizer()
    said = {"1 + 1": r"\boxed{2}", "2 + 2": r"\boxed{5}", "3 + 3": "6", "4 + 4": r"\boxed{8}"}
    asked: list[str] = []

    def generate(self: LLM, prompts: list, params: object) -> list[RequestOutput]:
        out = []
        for prompt, (question, text) in zip(prompts, said.items(), strict=True):
            asked.append(prompt if isinstance(prompt, str) else words.decode(prompt))
            ids, cut = words.encode(text), question == "4 + 4"
            out.append(RequestOutput(None, [1], [CompletionOutput(0, text, ids, None, "length" if cut else "stop")]))
        return out

    monkeypatch.setattr(LLM, "generate", generate)
    problems = [problem(question, str(2 * int(question[0]))) for question in said]
    config = GRPOConfig(style="v3", thinking=False, max_new_tokens=16)
    found = measure(build(t0(vocab_size=448)), words, problems, config, plain=plain)
    assert [one.right for one in found.answers] == [True, False, False, False] and found.cut == 1  # no box, and cut at the limit
    assert [one.gold for one in found.answers] == ["2", "4", "6", "8"] and found.value == 0.25
    assert all(question in text for question, text in zip(said, asked, strict=True))
    assert plain is None or asked[0] == "Question: 1 + 1\n"


def test_a_random_model_solves_nothing_and_gives_the_same_answer_every_time() -> None:
    words = tokenizer()
    model, config = build(t0(vocab_size=448)), GRPOConfig(style="r1", thinking=True, max_new_tokens=8)
    problems = [problem(f"{n} + 1", str(n + 1)) for n in range(3)]
    first, second = (accuracy.measure(model, words, problems, config, end_ids=[words.eos_id]) for _ in range(2))
    assert first == second and first.value == 0.0 and len(first.shares) == 3
    sampled, again = (accuracy.measure(model, words, problems, config, end_ids=[words.eos_id], samples=2) for _ in range(2))
    assert sampled == again and len(sampled.answers) == 6 and len({one.text for one in sampled.answers}) > 3
