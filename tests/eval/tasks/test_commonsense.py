"""OpenBookQA, CommonsenseQA, COPA and simple arithmetic."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import catalog
from tests.eval.tasks import fixture

PLACES = {"openbookqa": "openbookqa/openbook_qa.jsonl", "commonsenseqa": "commonsenseqa/commonsense_qa.jsonl", "copa": "copa/copa.jsonl"}


@pytest.mark.parametrize("name", PLACES)
def test_choices(name, tmp_path):
    rows = [{"query": f"Whales {n} ", "choices": ["sing", "fly"], "gold": n % 2} for n in range(5)]
    task = catalog.task(name)
    assert task.items(fixture.put(tmp_path, PLACES[name], rows), 1)[0].pairs[0] == ("Whales 1 fly\n\nWhales 0", " sing")
    found = fixture.chosen(task, tmp_path, lambda context, end: -1.0 if end == " sing" else -2.0)
    assert fixture.scores(found, "acc") == [1.0, 0.0, 1.0, 0.0, 1.0]
    with pytest.raises(DataError, match="field 'gold' is missing"):
        task.items(fixture.put(tmp_path, PLACES[name], [{"query": "q", "choices": []}]))


def test_arithmetic(tmp_path):
    task = catalog.task("simple_arithmetic")
    rows = [{"context": "1 + 1 =", "continuation": " 2"}]
    items = task.items(fixture.put(tmp_path, "simple_arithmetic/simple_arithmetic_withspaces.jsonl", rows))
    assert items[0].pairs == (("1 + 1 =", " 2"),)
