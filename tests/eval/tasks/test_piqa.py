"""PIQA in both forms."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import catalog
from tests.eval.tasks import fixture

UPSTREAM = [{"goal": f"Sing {n}", "sol1": "Open.", "sol2": "Close.", "label": n % 2} for n in range(5)]
BUNDLED = [{"query": f"Question: Sing {n}\n", "choices": ["Open.", "Close."], "gold": n % 2} for n in range(5)]


def test_prompt_bytes_and_scores(tmp_path):
    task = catalog.task("piqa")
    first = task.items(fixture.put(tmp_path / "a", "piqa.jsonl", UPSTREAM))
    assert first[0].pairs == (("Question: Sing 0\nAnswer:", " Open."), ("Question: Sing 0\nAnswer:", " Close."))
    assert [item.pairs for item in task.items(fixture.put(tmp_path / "b", "piqa.jsonl", BUNDLED))] == [item.pairs for item in first]
    found = fixture.chosen(task, tmp_path / "a", lambda context, end: -1.0 if "Open" in end else -1.1)
    assert fixture.scores(found, "acc") == [1.0, 0.0, 1.0, 0.0, 1.0] and fixture.scores(found, "acc_norm") == [0.0, 1.0, 0.0, 1.0, 0.0]


def test_a_malformed_row_is_refused(tmp_path):
    with pytest.raises(DataError, match="row 1 has not the form of task piqa"):
        catalog.task("piqa").items(fixture.put(tmp_path, "piqa.jsonl", [{"goal": "g", "sol1": "a", "label": 0}]))
