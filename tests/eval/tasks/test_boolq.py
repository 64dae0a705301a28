"""BoolQ in both forms."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import catalog
from tests.eval.tasks import fixture

UPSTREAM = [{"passage": f"Whales {n}.", "question": "do whales sing", "answer": n % 2 == 1} for n in range(5)]
BUNDLED = [{"query": f"Passage: Whales {n}.\nQuestion: do whales sing?", "choices": ["no", "yes"], "gold": n % 2} for n in range(5)]


def test_prompt_bytes_and_scores(tmp_path):
    task = catalog.task("boolq")
    first = task.items(fixture.put(tmp_path / "a", "boolq.jsonl", UPSTREAM), 1)
    assert first[0].pairs[1] == (
        "Whales 1.\nQuestion: do whales sing?\nAnswer: yes\n\nWhales 0.\nQuestion: do whales sing?\nAnswer:",
        " yes",
    )
    assert [item.pairs for item in task.items(fixture.put(tmp_path / "b", "boolq.jsonl", BUNDLED), 1)] == [item.pairs for item in first]
    found = fixture.chosen(task, tmp_path / "a", lambda context, end: -1.0 if end == " yes" else -2.0)
    assert fixture.scores(found, "acc") == [0.0, 1.0, 0.0, 1.0, 0.0]


def test_a_malformed_row_is_refused(tmp_path):
    with pytest.raises(DataError, match="'query' has no line that begins with 'Question: '"):
        catalog.task("boolq").items(fixture.put(tmp_path, "boolq.jsonl", [{"query": "q", "gold": 1}]))
