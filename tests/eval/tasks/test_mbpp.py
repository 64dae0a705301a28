"""MBPP in upstream's schema: its own three shots, right, wrong and unparseable code, the ids that count."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.task import Tools
from rorqual.eval.tasks import catalog
from tests.eval import boxes, small
from tests.eval.tasks import fixture

ROWS = [
    {"task_id": n, "text": f"Write {n}.", "code": f"def f(x):\r\n    return x + {n}", "test_list": [f"assert f({k}) == {k + n}" for k in range(3)], "test_setup_code": "", "challenge_test_list": []}
    for n in (2, 3, 4, 9, 11, 12, 13, 14, 510, 511)
]  # fmt: skip


def test_prompt_bytes(tmp_path):
    task = catalog.task("mbpp")
    items = task.items(fixture.put(tmp_path, "mbpp/mbpp.jsonl", ROWS), 1)
    ask = "You are an expert Python programmer, and here is your task: Write {n}. Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
    first = ask.format(n=2, tests="assert f(0) == 2\nassert f(1) == 3\nassert f(2) == 4") + "def f(x):\r\n    return x + 2\n[DONE]\n\n"
    assert task.shots == 3 and items[0].prompt == first + ask.format(n=11, tests="assert f(0) == 11\nassert f(1) == 12\nassert f(2) == 13")
    assert [item.id for item in items] == ["11", "12", "13", "14", "510"]


def test_scores(tmp_path):
    tools = Tools(10)
    tools._sandbox = boxes.best()
    answers = [
        "def f(x):\n    return x + 11\n",
        "```python\ndef f(x):\n    return x + 12\n```",
        "def f(x):\n    return 13",
        " ",
        "def f(x:",
    ]
    found = fixture.answered(catalog.task("mbpp"), fixture.put(tmp_path, "mbpp/mbpp.jsonl", ROWS), answers, tools=tools)
    assert fixture.scores(found, "pass@1") == [1.0, 1.0, 0.0, 0.0, 0.0] and found["unparseable_rate"] == 0.2


def test_a_function_that_is_named_like_one_of_pythons(tmp_path):
    tools = Tools(10)
    tools._sandbox = boxes.best()
    row = {"task_id": 126, "text": "", "code": "def sum(a, b):\n    return a * b", "test_list": ["assert sum(2, 5) == 10"] * 3}
    found = fixture.answered(catalog.task("mbpp"), fixture.put(tmp_path, "mbpp/mbpp.jsonl", [row]), [row["code"]], tools=tools)
    assert fixture.scores(found, "pass@1") == [1.0]


def test_a_malformed_row_is_refused(tmp_path):
    with pytest.raises(DataError, match="field 'test_list' is missing"):
        catalog.task("mbpp").items(fixture.put(tmp_path, "mbpp/mbpp.jsonl", [{"task_id": 11, "text": "", "code": ""}]))


@small.needs_data
def test_bundled_items():
    assert len(catalog.task("mbpp").items(small.DATA)) == 500
