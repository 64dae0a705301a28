"""BIG-Bench Hard: shots from the prompt file, the answer behind "answer is", 27 tasks of the bundled files."""

from __future__ import annotations

import json

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import bbh, catalog
from tests.eval import small
from tests.eval.tasks import fixture

WORKED = "canary, do not train\n-----\nSay which.\n\nQ: one?\nA: Let's think step by step.\nIt is. So the answer is (A).\n\nQ: two?\nA: Let's think step by step.\nSo the answer is (B).\n"  # fmt: skip


def _put(folder, rows):
    (folder / "snarks.json").write_text(json.dumps({"canary": "", "examples": rows}))
    (folder / "snarks.txt").write_text(WORKED)
    return folder


ROWS = [{"input": f"which {n}?", "target": "(A)"} for n in range(5)]


def test_prompt_bytes_and_scores(tmp_path):
    task = catalog.task("bbh_snarks")
    items = task.items(_put(tmp_path, ROWS), 1)
    assert items[0].prompt == (
        "Say which.\n\nQ: one?\nA: Let's think step by step.\nIt is. So the answer is (A).\n\nQ: which 0?\nA: Let's think step by step.\n"
    )
    answers = ["So the answer is (A).", "the answer is (B). No, the answer is (A)", "The answer is A.", "(A)", "the answer is "]
    found = fixture.answered(task, tmp_path, answers)
    assert fixture.scores(found, "exact_match") == [1.0, 1.0, 0.0, 0.0, 0.0] and found["unparseable_rate"] == 0.4


def test_malformed(tmp_path):
    with pytest.raises(DataError, match="field 'target' is missing"):
        catalog.task("bbh_snarks").items(_put(tmp_path, [{"input": "q"}]))
    (tmp_path / "snarks.txt").unlink()
    with pytest.raises(DataError, match="snarks.txt is missing: the description and three worked examples"):
        catalog.task("bbh_snarks").items(tmp_path)


@pytest.mark.slow
@small.needs_data
def test_the_bundled_tasks_have_three_examples_each_whose_answers_are_read():
    for name in catalog.GROUPS["bbh"]:
        task = catalog.task(name)
        item = task.items(small.DATA, limit=1)[0]
        assert item.prompt.count("A: Let's think step by step.\n") == 4 and task.shots == 3
        for example in item.row["examples"]:
            assert bbh.judge({"target": ""}, example["target"], None).answer is not None, name  # type: ignore[arg-type]
