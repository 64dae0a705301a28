"""GPQA in upstream's schema: an order of answers that never changes, scores by hand, a malformed row."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import catalog
from tests.eval.tasks import fixture

ROWS = [
    {"Question": f"What is {n}?", "Correct Answer": f" right{n} ", "Incorrect Answer 1": "x", "Incorrect Answer 2": "y", "Incorrect Answer 3": "z  z"} for n in range(5)
]  # fmt: skip


def test_prompt_bytes(tmp_path):
    task = catalog.task("gpqa")
    items = task.items(fixture.put(tmp_path, "gpqa/test.jsonl", ROWS))
    lines = items[0].pairs[0][0].split("\n")
    assert task.shots == 0 and lines[:2] == ["What is the correct answer to this question:What is 0?", "Choices:"] and lines[6] == "Answer:"
    assert sorted(line[4:] for line in lines[2:6]) == ["right0", "x", "y", "z z"] and [line[:4] for line in lines[2:6]] == [
        "(A) ",
        "(B) ",
        "(C) ",
        "(D) ",
    ]
    assert items == task.items(tmp_path) and [end for _, end in items[0].pairs] == [" (A)", " (B)", " (C)", " (D)"]
    assert len({item.row["gold"] for item in items}) > 1


def test_scores(tmp_path):
    """The right letter is read from the prompt for items 0 to 2, another one is said for item 3, and item 4 fails."""

    def score(context: str, end: str) -> object:
        if "is 4?" in context:
            return fixture.FAILED
        right = f"{end.strip()} right" in context
        return -1.0 if right == ("is 3?" not in context) else -2.0

    found = fixture.chosen(catalog.task("gpqa"), fixture.put(tmp_path, "gpqa/test.jsonl", ROWS), score)
    assert fixture.scores(found, "acc") == [1.0, 1.0, 1.0, 0.0, None] and found["metrics"]["acc"]["value"] == 0.75


def test_malformed_rows_are_refused(tmp_path):
    with pytest.raises(DataError, match="is one of the wrong ones too"):
        catalog.task("gpqa").items(fixture.put(tmp_path, "gpqa/test.jsonl", [{**ROWS[0], "Correct Answer": "x"}]))
    with pytest.raises(DataError, match="field 'Incorrect Answer 3' is missing"):
        catalog.task("gpqa").items(fixture.put(tmp_path, "gpqa/test.jsonl", [{key: value for key, value in list(ROWS[0].items())[:4]}]))
