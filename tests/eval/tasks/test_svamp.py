"""SVAMP: prompts and values."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import catalog
from tests.eval import small
from tests.eval.tasks import fixture

ROWS = [
    {
        "ID": f"chal-{n}",
        "Body": "Tom has 3 whales",
        "Question": f" How many {n}? ",
        "Answer": n + 0.5 * (n == 4),
        "Equation": "",
        "Type": "",
    }
    for n in range(5)
]


def test_prompt_bytes_and_scores(tmp_path):
    task = catalog.task("svamp")
    items = task.items(fixture.put(tmp_path, "svamp.jsonl", ROWS), 1)
    assert items[0].prompt == "Question: Tom has 3 whales. How many 1?\nAnswer: 1\n\nQuestion: Tom has 3 whales. How many 0?\nAnswer:"
    found = fixture.answered(task, tmp_path, ["0", "1.0", "It is 3", "none", "9/2"])
    assert fixture.scores(found, "exact_match") == [1.0, 1.0, 0.0, 0.0, 1.0] and found["unparseable_rate"] == 0.2


def test_a_malformed_row_is_refused(tmp_path):
    with pytest.raises(DataError, match="has not the form of task svamp"):
        catalog.task("svamp").items(fixture.put(tmp_path, "svamp.jsonl", [{**ROWS[0], "Answer": "many"}]))


@small.needs_data
def test_bundled_file():
    assert len(catalog.task("svamp").items(small.DATA)) == 1000 or len(catalog.task("svamp").items(small.DATA)) > 500
