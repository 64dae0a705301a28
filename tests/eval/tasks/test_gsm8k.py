"""GSM8K by hand: strict and flexible answers, prompts, a malformed row."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import catalog
from tests.eval.tasks import fixture

ROWS = [{"question": f"How many {n}?", "answer": f"It is 1,00{n}.\n#### 1,00{n}"} for n in range(5)]


def test_prompt_bytes_and_scores(tmp_path):
    task = catalog.task("gsm8k")
    items = task.items(fixture.put(tmp_path, "gsm8k.jsonl", ROWS), 1)
    assert items[0].prompt == "Question: How many 1?\nAnswer: It is 1,001.\n#### 1,001\n\nQuestion: How many 0?\nAnswer:"
    found = fixture.answered(task, tmp_path, ["#### 1000.", "#### $1,001", "1002", "#### 7\nThen #### 1003", ""])
    assert fixture.scores(found, "exact_match") == [1.0, 0.0, 0.0, 0.0, 0.0] and fixture.scores(found, "flexible") == [
        1.0,
        1.0,
        1.0,
        1.0,
        0.0,
    ]
    assert found["unparseable_rate"] == pytest.approx(0.6)


def test_a_malformed_row_is_refused(tmp_path):
    with pytest.raises(DataError, match="'answer' has no '#### NUMBER'"):
        catalog.task("gsm8k").items(fixture.put(tmp_path, "gsm8k.jsonl", [{"question": "q", "answer": "7"}]))
