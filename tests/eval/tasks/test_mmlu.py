"""MMLU, Redux and Pro in upstream's schema: prompt bytes, scores by hand, marked errors left out, a malformed row."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import catalog
from tests.eval.tasks import fixture

ROWS = [
    {"question": f" Q{n}? ", "subject": "high_school_biology" if n < 3 else "anatomy", "choices": ["ape", "bat", "cat", "dog"], "answer": n % 4} for n in range(5)
]  # fmt: skip
DEV = [{**ROWS[0], "question": "D0?"}, {**ROWS[3], "question": "D1?"}]


def test_prompt_bytes(tmp_path):
    task = catalog.task("mmlu")
    assert {catalog.task(name).shots for name in ("mmlu", "mmlu_redux", "mmlu_pro")} == {5}
    fixture.put(tmp_path, "mmlu/test.jsonl", ROWS)
    fixture.put(tmp_path, "mmlu/dev.jsonl", DEV)
    item = task.items(tmp_path, 1)[1]
    context = (
        "The following are multiple choice questions (with answers) about high school biology.\n\n"
        "D0?\nA. ape\nB. bat\nC. cat\nD. dog\nAnswer: A\n\nQ1?\nA. ape\nB. bat\nC. cat\nD. dog\nAnswer:"
    )
    assert item.pairs == tuple((context, f" {letter}") for letter in "ABCD")
    assert "about anatomy." in task.items(tmp_path, 1)[4].pairs[0][0] and "D1?" in task.items(tmp_path, 1)[4].pairs[0][0]


def test_scores(tmp_path):
    """A model that always says B is right for item 1 alone; item 4's request fails and is no zero."""
    found = fixture.chosen(
        catalog.task("mmlu"), fixture.put(tmp_path, "mmlu/test.jsonl", ROWS),
        lambda context, end: fixture.FAILED if "Q4?" in context else -1.0 if end == " B" else -2.0,
    )  # fmt: skip
    assert fixture.scores(found, "acc") == [0.0, 1.0, 0.0, 0.0, None] and found["metrics"]["acc"]["value"] == 0.25 and found["failed"] == 1
    assert found["groups"]["high_school_biology"]["value"] == pytest.approx(1 / 3)


def test_redux_leaves_out_what_its_authors_marked(tmp_path):
    rows = [{**row, "error_type": "ok" if n != 2 else "wrong_groundtruth"} for n, row in enumerate(ROWS)]
    items = catalog.task("mmlu_redux").items(fixture.put(tmp_path, "mmlu_redux/test.jsonl", rows), 0)
    assert [item.row["question"] for item in items] == [" Q0? ", " Q1? ", " Q3? ", " Q4? "]


def test_pro_has_up_to_ten_choices(tmp_path):
    row = {"question_id": 1, "question": "Q?", "options": [f"o{n}" for n in range(10)], "answer": "J", "answer_index": 9, "category": "law"}
    found = fixture.chosen(
        catalog.task("mmlu_pro"), fixture.put(tmp_path, "mmlu_pro/test.jsonl", [row]), lambda context, end: -1.0 if end == " J" else -2.0
    )
    assert (
        fixture.scores(found, "acc") == [1.0]
        and found["first_prompt"].endswith("I. o8\nJ. o9\nAnswer:")
        and "about law." in found["first_prompt"]
    )


def test_malformed_rows_are_refused(tmp_path):
    for row, message in (
        ({"question": "q", "choices": ["a", "b"]}, "field 'answer' is missing"), ({"question": "q", "answer": 1}, "has not the form of task mmlu"),
        ({"question": "q", "choices": ["a", "b"], "answer": 7}, "right one 7"), ({"question": "q", "choices": ["a", "b"], "answer": "Z"}, "has not the form"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            catalog.task("mmlu").items(fixture.put(tmp_path, "mmlu/test.jsonl", [row]), 0)
