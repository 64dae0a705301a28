"""Five items in upstream's schema: right, another right answer, wrong, unparseable; a malformed row."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import catalog
from tests.eval.tasks import fixture

ROWS = [
    {"question": "who wrote the book the origin of species", "answer": ["Charles Darwin"]},
    {"question": "when did the eagles win last super bowl", "answer": ["2017"]},
    {"question": "who sings the song of the sea", "answer": ["The Whales", "a choir of whales"]},
    {"question": "where is the deep", "answer": ["Pacific Ocean", "Mariana Trench"]},
    {"question": "what is the name of the ship", "answer": "Pequod"},
]


def test_prompt_bytes(tmp_path):
    task = catalog.task("nq")
    assert task.shots == 5
    item = task.items(fixture.put(tmp_path, "nq/validation.jsonl", ROWS), 2)[0]
    assert item.prompt == (
        "Answer these questions:\n\nQ: when did the eagles win last super bowl?\nA: 2017\nQ: who sings the song of the sea?\nA: The Whales\n"
        "Q: who wrote the book the origin of species?\nA:"
    )


def test_scores(tmp_path):
    """whales = The Whales without article and case; "the trench" is no answer's text; an article alone is unparseable."""
    answers = [" Charles Darwin", " 2018", " whales", " the", fixture.FAILED]
    found = fixture.answered(catalog.task("nq"), fixture.put(tmp_path, "nq/validation.jsonl", ROWS), answers)
    assert fixture.scores(found, "exact_match") == [1.0, 0.0, 1.0, 0.0, None]
    assert found["metrics"]["exact_match"]["value"] == 0.5 and found["metrics"]["exact_match"]["n"] == 4
    assert found["unparseable_rate"] == 0.2 and found["failed"] == 1


def test_a_malformed_row_is_refused(tmp_path):
    for rows, message in (
        ([*ROWS, {"question": "q"}], "row 6: field 'answer' is missing"),
        ([{"question": "q", "answer": []}], "row 1 has not the form"),
    ):
        with pytest.raises(DataError, match=message):
            catalog.task("nq").items(fixture.put(tmp_path, "nq/validation.jsonl", rows), 0)
