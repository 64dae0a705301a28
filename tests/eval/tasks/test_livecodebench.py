"""Contest problems in upstream's schema: by standard input and by a function; right, wrong, unparseable, endless; a malformed row."""

from __future__ import annotations

import json

import pytest

from rorqual.errors import DataError
from rorqual.eval.task import Tools
from rorqual.eval.tasks import catalog
from tests.eval import boxes
from tests.eval.tasks import fixture

TWICE = json.dumps([{"input": "2\n", "output": "4\n", "testtype": "stdin"}, {"input": "5\n", "output": "10", "testtype": "stdin"}])
CALLS = json.dumps([{"input": "[1, 2]\n3", "output": "true", "testtype": "functional"}])
ROWS = [
    {"question_id": f"{n}", "question_content": f" Problem {n}. ", "starter_code": "", "public_test_cases": TWICE, "private_test_cases": "", "metadata": "{}"}
    for n in range(4)
] + [
    {"question_id": "4", "question_content": "Sum?", "starter_code": "class Solution:\n    def has(self, x: List[int], s: int) -> bool:\n        ",
     "public_test_cases": "[]", "private_test_cases": CALLS, "metadata": '{"func_name": "has"}'},
]  # fmt: skip


def test_prompt_bytes(tmp_path):
    task = catalog.task("livecodebench")
    assert task.shots == 3
    items = task.items(fixture.put(tmp_path, "livecodebench/test.jsonl", ROWS), 0)
    begin = (
        "You will be given a question (problem specification) and will write a correct Python program that passes all tests.\n\nQuestion:\n"
    )
    assert items[0].prompt == begin + (
        "Problem 0.\n\nRead the inputs from stdin, solve the problem and write the answer to stdout.\n\nAnswer:\n```python\n"
    )
    assert items[4].prompt == begin + (
        "Sum?\n\nUse the following starter code:\nclass Solution:\n    def has(self, x: List[int], s: int) -> bool:\n\nAnswer:\n```python\n"
    )
    fixture.put(tmp_path, "livecodebench/shots.jsonl", [{"question_id": "s", "question_content": "S", "code": "print(1)"}])
    assert "Question:\nS\n\n" in (shot := task.items(tmp_path, 1)[0].prompt) and "```python\nprint(1)\n```\n\nYou will" in shot


def test_scores(tmp_path):
    tools = Tools(3)
    tools._sandbox = boxes.best()
    answers = [
        "print(int(input()) * 2)", "print(4)", " ", "```python\nwhile True: pass\n```",
        "class Solution:\n    def has(self, x: List[int], s: int) -> bool:\n        return sum(x) == s",
    ]  # fmt: skip
    found = fixture.answered(catalog.task("livecodebench"), fixture.put(tmp_path, "livecodebench/test.jsonl", ROWS), answers, tools=tools)
    assert fixture.scores(found, "pass@1") == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert found["unparseable_rate"] == 0.2 and found["items"][1]["notes"][0].startswith("test 1")


def test_malformed_rows_are_refused(tmp_path):
    for row, message in (
        ({"question_id": "1", "question_content": "q", "private_test_cases": "eJxrYJ=="}, "has not the form of task livecodebench"),
        ({"question_id": "1", "question_content": "q"}, "there are no tests; they must be JSON"),
        ({"question_id": "1", "question_content": "q", "private_test_cases": CALLS}, "functional tests need 'func_name'"),
    ):
        with pytest.raises(DataError, match=message):
            catalog.task("livecodebench").items(fixture.put(tmp_path, "livecodebench/test.jsonl", [row]), 0)
