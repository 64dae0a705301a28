"""LAMBADA in both forms: context and last word."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import catalog
from tests.eval.tasks import fixture


def test_prompt_bytes_and_scores(tmp_path):
    task = catalog.task("lambada")
    rows = [{"text": "the whale sings"}, {"context": "the bat", "continuation": " flies"}]
    items = task.items(fixture.put(tmp_path, "lambada.jsonl", rows))
    assert [item.pairs for item in items] == [(("the whale", " sings"),), (("the bat", " flies"),)]
    found = fixture.chosen(task, tmp_path, lambda context, end: -0.5 if "whale" in context else -1.5)
    assert fixture.scores(found, "acc") == [1.0, 0.0] and found["metrics"]["perplexity"]["value"] == pytest.approx(2.718281828)


def test_a_malformed_row_is_refused(tmp_path):
    with pytest.raises(DataError, match="the last word is empty"):
        catalog.task("lambada").items(fixture.put(tmp_path, "lambada.jsonl", [{"text": "ends in a space "}]))
