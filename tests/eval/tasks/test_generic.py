"""Tasks that a user's JSON file describes: prompts, kinds of answers, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rorqual.errors import ConfigError, DataError
from rorqual.eval.tasks import catalog, generic
from tests.eval.tasks import fixture


def _task(folder, **given: Any):
    (folder / "exam.json").write_text(json.dumps(given))
    return catalog.task(str(folder / "exam.json"))


CHOICE = {"kind": "multiple_choice", "file": "rows.jsonl", "fields": {"question": "q", "choices": ["a", "b", "c"], "answer": "k", "passage": "p"}, "id": "n"}  # fmt: skip
ROWS = [{"n": n, "p": "Text.", "q": f"Q{n}?", "a": "x", "b": "y", "c": "z", "k": key} for n, key in enumerate(["B", "y", 1, "1", "c"])]


def test_multiple_choice(tmp_path):
    task = _task(tmp_path, **CHOICE, shots=1, name="mine", description="Choose.\n\n")
    items = task.items(fixture.put(tmp_path, "rows.jsonl", ROWS))
    assert items[1].pairs[2] == ("Choose.\n\nText.\n\nQ0?\nA. x\nB. y\nC. z\nAnswer: B\n\nText.\n\nQ1?\nA. x\nB. y\nC. z\nAnswer:", " C")
    assert [item.row["gold"] for item in items] == [1, 1, 1, 1, 2] and task.name == "mine"
    found = fixture.chosen(task, tmp_path, lambda context, end: -1.0 if end == " B" else -2.0)
    assert fixture.scores(found, "acc") == [1.0, 1.0, 1.0, 1.0, 0.0]
    words = _task(tmp_path, **CHOICE, letters=False, ask="So:").items(tmp_path)
    assert words[0].pairs[0] == ("Text.\n\nQ0?\nSo:", " x")


@pytest.mark.parametrize(
    ("kind", "metric", "wanted"),
    [
        ("exact_match", "exact_match", [1.0, 1.0, 0.0, 0.0, 0.0]),
        ("f1", "f1", [1.0, 1.0, 0.0, 0.0, 2 / 3]),
        ("maths", "exact_match", [0.0, 0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_answers(kind, metric, wanted, tmp_path):
    rows = [{"q": f"Q{n}?", "k": ["blue whale", "orca"]} for n in range(5)]
    task = _task(tmp_path, kind=kind, file="rows.jsonl", fields={"question": "q", "answer": "k"})
    assert task.items(fixture.put(tmp_path, "rows.jsonl", rows))[0].prompt == "Q0?\nAnswer:"
    if kind == "maths":
        rows = [{"q": f"Q{n}?", "k": "7"} for n in range(5)]
        fixture.put(tmp_path, "rows.jsonl", rows)
    found = fixture.answered(task, tmp_path, ["Blue whale.", "the orca", "bat", "", "whale"])
    assert fixture.scores(found, metric) == pytest.approx(wanted)


def test_what_is_refused(tmp_path):
    for given, message in (
        ({"kind": "poem", "file": "x"}, "needs 'kind'"), ({"kind": "f1"}, "and 'file'"), ({**CHOICE, "shot": 3}, "shot is not known in a task file"),
        ({**CHOICE, "fields": {"question": "q", "answer": "k"}}, "needs 'choices'"), ({**CHOICE, "fields": {}}, "needs 'question'"),
        ({**CHOICE, "ask": 3}, "a text is required"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            _task(tmp_path, **given)
    (tmp_path / "exam.json").write_text("{")
    with pytest.raises(ConfigError, match="is no task file"):
        generic.from_file(tmp_path / "exam.json")
    with pytest.raises(DataError, match="field 'q' is missing"):
        _task(tmp_path, **CHOICE).items(fixture.put(tmp_path, "rows.jsonl", [{"n": 1}]))
