"""The two Gaokao parts of AGIEval: prompts, letters, values in several forms."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import agieval, catalog
from tests.eval import small
from tests.eval.tasks import fixture

CHOICES = [
    {"passage": None, "question": f"谁{n}？", "options": ["(A)猿", "(B)蝠", "(C)猫", "(D)狗"], "label": "B", "answer": None}
    for n in range(5)
]
VALUES = [{"passage": "", "question": f"求{n}。", "options": None, "label": None, "answer": r"\frac{1}{2}"} for n in range(5)]


def test_letters(tmp_path):
    task = catalog.task("agieval_gaokao_mathqa")
    items = task.items(fixture.put(tmp_path, "gaokao-mathqa.jsonl", CHOICES))
    assert task.shots == 0 and items[0].prompt == "问题：谁0？ 选项：(A)猿 (B)蝠 (C)猫 (D)狗\n答案：从A到D, 我们应选择"
    found = fixture.answered(task, tmp_path, ["B", " (B)。", "A、B", "不知道", "因为A Bat，"])
    assert fixture.scores(found, "exact_match") == [1.0, 1.0, 0.0, 0.0, 0.0] and found["unparseable_rate"] == 0.2
    assert (
        agieval.judge_letters({"gold": "BD"}, "选D，B", None).score == 0.0
        and agieval.judge_letters({"gold": "BD"}, "D、B", None).score == 1.0
    )  # type: ignore[arg-type]


def test_values(tmp_path):
    task = catalog.task("agieval_gaokao_mathcloze")
    assert task.items(fixture.put(tmp_path, "gaokao-mathcloze.jsonl", VALUES))[0].prompt == "问题：求0。\n答案："
    found = fixture.answered(task, tmp_path, ["$0.5$", r"由题意 \boxed{\frac{2}{4}}", "$x = 1$，所以 $0.25$。", " ", r"\boxed{}"])
    assert fixture.scores(found, "exact_match") == [1.0, 1.0, 0.0, 0.0, 0.0] and found["unparseable_rate"] == 0.4


def test_a_malformed_row_is_refused(tmp_path):
    with pytest.raises(DataError, match="neither 'label' nor 'answer' holds an answer"):
        catalog.task("agieval_gaokao_mathqa").items(fixture.put(tmp_path, "gaokao-mathqa.jsonl", [{**CHOICES[0], "label": "x"}]))


@small.needs_data
def test_bundled_counts():
    assert [len(catalog.task(name).items(small.DATA)) for name in catalog.GROUPS["agieval"]] == [351, 118]
