"""TriviaQA in upstream's and in the bundled form."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import catalog
from tests.eval import small
from tests.eval.tasks import fixture

ROWS = [{"question_id": f"t{n}", "question": f"Who is {n}?", "answer": {"value": "Spider-Man", "aliases": ["Spider Man", "Peter_Parker"], "normalized_value": "spider man"}} for n in range(5)]  # fmt: skip


def test_prompt_bytes_and_scores(tmp_path):
    """Upstream's own question mark stays, as in lm-evaluation-harness."""
    task = catalog.task("triviaqa")
    items = task.items(fixture.put(tmp_path, "triviaqa/validation.jsonl", ROWS), 1)
    assert task.shots == 5 and items[0].prompt == "Question: Who is 1??\nAnswer: Spider Man\n\nQuestion: Who is 0??\nAnswer:"
    found = fixture.answered(task, tmp_path, [" spider-man", " peter parker", " Parker", " the", fixture.FAILED])
    assert fixture.scores(found, "exact_match") == [1.0, 1.0, 0.0, 0.0, None] and found["unparseable_rate"] == 0.2


def test_a_malformed_row_is_refused(tmp_path):
    with pytest.raises(DataError, match="has not the form of task triviaqa"):
        catalog.task("triviaqa").items(fixture.put(tmp_path, "triviaqa.jsonl", [{"question": "q", "answer": {}}]))


@small.needs_data
def test_bundled_form():
    item = catalog.task("triviaqa").items(small.DATA, 0, 1)[0]
    assert (
        item.prompt == "Question: Brunswick, Lancastrian and Pearl Pickler are types of which vegetable??\nAnswer:"
        and "Onion" in item.row["answers"]
    )
