"""Needles at depths and lengths: where they stand, what is read, files that cannot serve."""

from __future__ import annotations

import json

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import catalog
from tests.eval.tasks import fixture

HAY = " ".join(f"w{n}" for n in range(20))


def _task(folder, text=HAY, **more):
    (folder / "hay.txt").write_text(text)
    (folder / "n.json").write_text(json.dumps({"kind": "needle", "file": "hay.txt", "lengths": [4, 10], "depths": [0, 50, 100], **more}))
    return catalog.task(str(folder / "n.json"))


def test_where_the_needle_stands(tmp_path):
    items = _task(tmp_path).items(tmp_path)
    number = items[1].row["number"]
    assert [item.id for item in items] == ["4:0", "4:50", "4:100", "10:0", "10:50", "10:100"]
    assert items[1].prompt == (
        f"w0 w1 The secret number of the whale is {number}. w2 w3\n\nQuestion: What is the secret number of the whale?\n"
        "Answer: The secret number of the whale is"
    )
    assert len({item.row["number"] for item in items}) == 6 and items == _task(tmp_path).items(tmp_path)


def test_scores_by_length_and_depth(tmp_path):
    task = _task(tmp_path)
    numbers = [item.row["number"] for item in task.items(tmp_path)]
    found = fixture.answered(task, tmp_path, [f" {numbers[0]}.", numbers[0], "", f"{int(numbers[3]):,}", fixture.FAILED, "seven"])
    assert fixture.scores(found, "exact_match") == [1.0, 0.0, 0.0, 1.0, None, 0.0] and found["unparseable_rate"] == pytest.approx(2 / 6)
    assert found["groups"]["4 words, depth 50"]["value"] == 0.0 and found["groups"]["10 words, depth 0"]["value"] == 1.0


def test_what_cannot_serve(tmp_path):
    with pytest.raises(DataError, match="has 2 words, the longest haystack needs 10"):
        _task(tmp_path, text="two words").items(tmp_path)
    with pytest.raises(DataError, match="must be from 0 to 100"):
        _task(tmp_path, depths=[101]).items(tmp_path)
