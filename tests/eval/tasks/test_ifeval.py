"""IFEval's rows: scores at prompt and instruction level by hand, rows that cannot be checked, the bundled file whole."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import catalog
from tests.eval import small
from tests.eval.tasks import fixture

ROWS = [
    {"key": n, "prompt": f"Say {n}.", "instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {}]} for n in range(5)
]  # fmt: skip


def test_scores(tmp_path):
    task = catalog.task("ifeval")
    fixture.put(tmp_path, "ifeval/input_data.jsonl", ROWS)
    assert task.items(tmp_path)[0].prompt == "Say 0." and task.shots == 0 and task.metric == "prompt_strict"
    found = fixture.answered(task, tmp_path, ['"yes"', 'Here:\n"yes"', "yes, no", "", fixture.FAILED])
    assert fixture.scores(found, "prompt_strict") == [1.0, 0.0, 0.0, 0.0, None]
    assert fixture.scores(found, "prompt_loose") == [1.0, 1.0, 0.0, 0.0, None]
    assert fixture.scores(found, "instruction_strict") == [1.0, 0.5, 0.0, 0.0, None]
    assert found["unparseable_rate"] == 0.2 and found["metrics"]["prompt_strict"]["value"] == 0.25


def test_malformed_rows_are_refused(tmp_path):
    for change, message in (
        ({"kwargs": [{}]}, "lists of one length"), ({"kwargs": [], "instruction_id_list": []}, "not empty"),
        ({"instruction_id_list": ["a", "b"]}, "instruction 'a' is not one of IFEval's 25"),
        ({"instruction_id_list": ["keywords:existence", "startend:quotation"]}, "needs keywords"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            catalog.task("ifeval").items(fixture.put(tmp_path, "ifeval/input_data.jsonl", [{**ROWS[0], **change}]))


@pytest.mark.slow
@small.needs_data
def test_every_bundled_row_can_be_checked():
    task = catalog.task("ifeval")
    items = task.items(small.DATA)
    assert len(items) == 541
    found = [task.judge(item.row, text, None) for item in items for text in ("a" * 8192, "No.", item.prompt)]  # type: ignore[arg-type]
    assert all(one.score in (0.0, 1.0) for one in found)
