"""HellaSwag in upstream's schema: cleaned texts, both accuracies by hand, a failed item, a malformed row."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import catalog, hellaswag
from tests.eval.tasks import fixture

ROWS = [
    {"ind": n, "activity_label": "Diving", "ctx_a": f"Whale {n} dives. [header]", "ctx_b": "it THEN", "ctx": "", "split": "val", "split_type": "indomain",
     "endings": ["sings.", "goes [title] Up  high.", "sleeps for a very long time.", "x."], "source_id": "w", "label": str(n % 4)}
    for n in range(5)
]  # fmt: skip


def test_prompt_bytes(tmp_path):
    task = catalog.task("hellaswag")
    assert task.shots == 10
    items = task.items(fixture.put(tmp_path, "hellaswag/hellaswag_val.jsonl", ROWS), 1)
    context = "Diving: Whale 1 dives. It then goes. Up high.\n\nDiving: Whale 0 dives. It then"
    assert items[0].pairs == tuple((context, end) for end in (" sings.", " goes. Up high.", " sleeps for a very long time.", " x."))
    assert hellaswag.clean(" a [step] b [title] c ") == "a b. c"


def test_scores(tmp_path):
    """-6 / 6 bytes, -13 / 14, -14 / 28 and -5 / 2: plain takes the last ending, per byte the third; item 4 fails."""
    values = {" sings.": -6.0, " goes. Up high.": -13.0, " sleeps for a very long time.": -14.0, " x.": -5.0}
    found = fixture.chosen(
        catalog.task("hellaswag"), fixture.put(tmp_path, "hellaswag/hellaswag_val.jsonl", ROWS),
        lambda context, end: fixture.FAILED if "Whale 4" in context else values[end],
    )  # fmt: skip
    assert fixture.scores(found, "acc") == [0.0, 0.0, 0.0, 1.0, None] and fixture.scores(found, "acc_norm") == [0.0, 0.0, 1.0, 0.0, None]
    assert found["metrics"]["acc"]["value"] == 0.25 and found["failed"] == 1


def test_malformed_rows_are_refused(tmp_path):
    for change, message in (
        ({"label": ""}, "has not the form"),
        ({"endings": ["a"]}, "two or more"),
        ({"endings": ["a", ""]}, "none empty"),
    ):
        with pytest.raises(DataError, match=message):
            catalog.task("hellaswag").items(fixture.put(tmp_path, "hellaswag/hellaswag_val.jsonl", [{**ROWS[0], **change}]), 0)
