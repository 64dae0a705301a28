"""WinoGrande in both forms: the gap is filled, the common end is scored."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import catalog
from tests.eval.tasks import fixture

UPSTREAM = [
    {"sentence": f"{n}: it did not fit since the _ was big.", "option1": "whale", "option2": "box", "answer": "12"[n % 2]} for n in range(5)
]
BUNDLED = [
    {"context_options": [f"{n}: it did not fit since the {one}" for one in ("whale", "box")], "continuation": " was big.", "gold": n % 2}
    for n in range(5)
]


def test_prompt_bytes_and_scores(tmp_path):
    task = catalog.task("winogrande")
    first = task.items(fixture.put(tmp_path / "a", "winogrande.jsonl", UPSTREAM), 1)
    shot = "1: it did not fit since the box was big.\n\n0: it did not fit since the "
    assert first[0].pairs == ((shot + "whale", " was big."), (shot + "box", " was big."))
    assert [item.pairs for item in task.items(fixture.put(tmp_path / "b", "winogrande.jsonl", BUNDLED), 1)] == [
        item.pairs for item in first
    ]
    found = fixture.chosen(task, tmp_path / "a", lambda context, end: -1.0 if context.endswith("box") else -2.0)
    assert fixture.scores(found, "acc") == [0.0, 1.0, 0.0, 1.0, 0.0] and "acc_norm" not in found["metrics"]


def test_a_malformed_row_is_refused(tmp_path):
    with pytest.raises(DataError, match="row 1 has not the form of task winogrande"):
        catalog.task("winogrande").items(fixture.put(tmp_path, "winogrande.jsonl", [{**UPSTREAM[0], "answer": ""}]))
