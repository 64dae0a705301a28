"""CMath: prompts and values, with the bundled file."""

from __future__ import annotations

from fractions import Fraction

from rorqual.eval.tasks import catalog, numbers
from tests.eval import small
from tests.eval.tasks import fixture

ROWS = [
    {"grade": 1, "question": f"多少{n}？", "golden": golden, "reasoning_step": "1"}
    for n, golden in enumerate(["1/5", "3", "0.5", "7", "8"])
]


def test_prompt_bytes_and_scores(tmp_path):
    task = catalog.task("cmath")
    items = task.items(fixture.put(tmp_path, "cmath/test.jsonl", ROWS), 1)
    assert task.shots == 3 and items[0].prompt == "问题：多少1？\n答案：3\n\n问题：多少0？\n答案："
    found = fixture.answered(task, tmp_path, ["是1/5。", "3元", "1/2", "7，不，8", "不知道"])
    assert fixture.scores(found, "exact_match") == [1.0, 1.0, 1.0, 0.0, 0.0] and found["unparseable_rate"] == 0.2


@small.needs_data
def test_every_bundled_answer_is_a_number():
    items = catalog.task("cmath").items(small.DATA)
    assert len(items) == 1098 and all(isinstance(numbers.value(item.row["answer"]), Fraction) for item in items)
