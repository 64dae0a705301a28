"""ARC in the bundled and in upstream's form: the same prompts, a malformed row."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import catalog
from tests.eval.tasks import fixture

UPSTREAM = [
    {
        "id": str(n),
        "question": f"Who {n}?",
        "choices": {"text": ["ape", "bat", "cat"], "label": ["1", "2", "3"]},
        "answerKey": str(n % 3 + 1),
    }
    for n in range(5)
]
BUNDLED = [{"query": f"Question: Who {n}?", "choices": ["ape", "bat", "cat"], "gold": n % 3} for n in range(5)]


def test_prompt_bytes_and_scores(tmp_path):
    task = catalog.task("arc_challenge")
    first = task.items(fixture.put(tmp_path / "a", "arc/arc_challenge.jsonl", UPSTREAM), 1)
    assert first[0].pairs[2] == ("Question: Who 1?\nAnswer: bat\n\nQuestion: Who 0?\nAnswer:", " cat")
    second = task.items(fixture.put(tmp_path / "b", "arc/arc_challenge.jsonl", BUNDLED), 1)
    assert [item.pairs for item in first] == [item.pairs for item in second]
    found = fixture.chosen(task, tmp_path / "a", lambda context, end: fixture.FAILED if "Who 4" in context else -len(end) - (end != " bat"))
    assert fixture.scores(found, "acc") == [0.0, 1.0, 0.0, 0.0, None]


def test_malformed_rows_are_refused(tmp_path):
    for row in ({**UPSTREAM[0], "answerKey": "9"}, {"query": "q", "choices": ["a", "b"]}):
        with pytest.raises(DataError, match="row 1 has not the form of task arc_easy"):
            catalog.task("arc_easy").items(fixture.put(tmp_path, "arc_easy.jsonl", [row]))
