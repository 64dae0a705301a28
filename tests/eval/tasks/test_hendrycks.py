"""MATH and MATH-500 in upstream's schema: right in another form, wrong, unparseable, undecided; a malformed row."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import catalog
from tests.eval.tasks import fixture

ROWS = [
    {"problem": f"Problem number {n}: $x$?", "level": "Level 1", "type": "Algebra", "solution": f"So it is $\\boxed{{{answer}}}$."}
    for n, answer in enumerate([r"\frac{1}{2}", "7", r"\text{east}", r"12\text{ cm}", "1,000", "see the figure"])
]


def test_prompt_bytes(tmp_path):
    task = catalog.task("math")
    assert task.shots == 4 and catalog.task("math_500").shots == 0
    fixture.put(tmp_path, "math/test.jsonl", ROWS)
    assert task.items(tmp_path, 1)[1].prompt == (
        "Problem:\nProblem number 0: $x$?\n\nSolution: So it is $\\boxed{\\frac{1}{2}}$.\n\nProblem:\nProblem number 1: $x$?\n\nSolution:"
    )
    fixture.put(tmp_path, "math/train.jsonl", [{"problem": "t", "solution": r"\boxed{9}"}])
    assert task.items(tmp_path, 1)[1].prompt == "Problem:\nt\n\nSolution: \\boxed{9}\n\nProblem:\nProblem number 1: $x$?\n\nSolution:"


def test_scores(tmp_path):
    answers = [r"\boxed{0.5}", "The answer is 8.", "Final Answer: The final answer is $East$. I hope it is correct.", "12", r"\boxed{1000}", r"\boxed{see the figure}"]  # fmt: skip
    found = fixture.answered(catalog.task("math"), fixture.put(tmp_path, "math/test.jsonl", ROWS), answers)
    assert fixture.scores(found, "exact_match") == [1.0, 0.0, 1.0, 0.0, 1.0, None]
    assert [item["answers"][0] for item in found["items"]] == ["0.5", "8", "East", None, "1000", "see the figure"]
    assert found["metrics"]["exact_match"] | {"interval": 0, "stderr": 0} == {"value": 0.6, "n": 5, "interval": 0, "stderr": 0}
    assert found["undecided"] == 1 and found["unparseable_rate"] == pytest.approx(1 / 6)


def test_math_500_takes_its_own_answers(tmp_path):
    rows = [{"problem": "p", "solution": "s", "answer": "3", "subject": "Algebra", "unique_id": "a"}]
    task = catalog.task("math_500")
    found = fixture.answered(task, fixture.put(tmp_path, "math_500/test.jsonl", rows), [r"<think>\boxed{4}</think> \boxed{3}"])
    assert fixture.scores(found, "exact_match") == [1.0] and found["first_prompt"] == "Problem:\np\n\nSolution:"


def test_a_malformed_row_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"row 2 has not the form of task math \('solution' has no \\boxed\{\} answer"):
        catalog.task("math").items(fixture.put(tmp_path, "math/test.jsonl", [ROWS[0], {"problem": "p", "solution": "it is 3"}]), 0)
