"""Five items in upstream's schema, F1 by hand: number, date, spans, wrong, unparseable; a malformed row."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import catalog
from tests.eval.tasks import fixture

NONE = {"day": "", "month": "", "year": ""}


def _row(number: int, question: str, answer: dict, validated: list[dict] | dict = []) -> dict:  # noqa: B006
    return {"query_id": f"q{number}", "section_id": "s", "passage": "The Bears beat the Lions 24-17.", "question": question, "answer": answer, "validated_answers": validated}  # fmt: skip


ROWS = [
    _row(0, "How many points?", {"number": "7", "date": NONE, "spans": []}),
    _row(1, "When?", {"number": "", "date": {"day": "4", "month": "July", "year": "1999"}, "spans": []}),
    _row(2, "Who?", {"number": "", "date": NONE, "spans": ["Bears", "Lions"]}, {"number": [""], "date": [NONE], "spans": [["The Bears"]]}),
    _row(3, "Who won?", {"number": "", "date": NONE, "spans": ["Bears"]}, [{"number": "", "date": NONE, "spans": ["Chicago Bears"]}]),
    _row(4, "How many?", {"number": "24", "date": NONE, "spans": []}),
]


def test_prompt_bytes(tmp_path):
    task = catalog.task("drop")
    assert task.shots == 3
    items = task.items(fixture.put(tmp_path, "drop/validation.jsonl", ROWS), 2)
    assert items[3].prompt == (
        "The Bears beat the Lions 24-17. How many points?7\n\nThe Bears beat the Lions 24-17. When?4 July 1999\n\n"
        "The Bears beat the Lions 24-17. Who won?"
    )
    assert task.items(tmp_path, 1)[0].prompt.startswith("The Bears beat the Lions 24-17. When?4 July 1999\n\n")


def test_scores(tmp_path):
    """7 = 7; "July 1999" against "4 July 1999": the number 1999 is shared, P 1, R 2/3, F1 0.8; "Bears,Lions" are both spans; "Chicago Bears" is a
    validated answer; nothing is unparseable."""
    answers = [" 7", "July 1999", " Lions, Bears", "the Chicago Bears", " "]
    found = fixture.answered(catalog.task("drop"), fixture.put(tmp_path, "drop/validation.jsonl", ROWS), answers)
    assert fixture.scores(found, "f1") == [1.0, 0.8, 1.0, 1.0, 0.0] and fixture.scores(found, "em") == [1.0, 0.0, 1.0, 1.0, 0.0]
    assert found["metrics"]["f1"]["value"] == pytest.approx(0.76) and found["unparseable_rate"] == 0.2


def test_a_wrong_number_scores_nothing(tmp_path):
    found = fixture.answered(catalog.task("drop"), fixture.put(tmp_path, "drop/validation.jsonl", ROWS[4:]), ["24 or 17 points"])
    assert fixture.scores(found, "f1") == [0.4]  # bags {24.0} and {24.0, or, 17.0, points}: P 1/4, R 1
    found = fixture.answered(catalog.task("drop"), fixture.put(tmp_path / "b", "drop/validation.jsonl", ROWS[4:]), ["17"])
    assert fixture.scores(found, "f1") == [0.0]


def test_malformed_rows_are_refused(tmp_path):
    empty = _row(9, "?", {"number": "", "date": NONE, "spans": []})
    for rows, message in (
        ([{key: value for key, value in ROWS[0].items() if key != "passage"}], "field 'passage' is missing"), ([empty], "no answer has a number"),
        ([ROWS[0], ROWS[0]], "id 'q0' is row 1's already"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            catalog.task("drop").items(fixture.put(tmp_path, "drop/validation.jsonl", rows), 0)
