"""CRUXEval by hand: inputs are run, outputs compared as literals; calls that would take over the assertion are no answers."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.task import Tools
from rorqual.eval.tasks import catalog
from tests.eval import boxes, small
from tests.eval.tasks import fixture

ROWS = [{"id": f"sample_{n}", "code": "def f(x):\n    return x + x", "input": "'ab'", "output": "'abab'"} for n in range(5)]


def test_prompt_bytes(tmp_path):
    fixture.put(tmp_path, "cruxeval/cruxeval.jsonl", ROWS)
    forward, back = catalog.task("cruxeval_o"), catalog.task("cruxeval_i")
    assert (forward.shots, back.shots) == (2, 2)
    assert forward.items(tmp_path, 1)[0].prompt.endswith(
        "following the examples.\n[PYTHON]\ndef f(x):\n    return x + x\nassert f('ab') == ??\n[/PYTHON] \n[ANSWER]\nassert f('ab') == 'abab'\n[/ANSWER]"
        "\n\n[PYTHON]\ndef f(x):\n    return x + x\nassert f('ab') == ??\n[/PYTHON]"
    )
    assert back.items(tmp_path, 0)[0].prompt.endswith("function.\n[PYTHON]\ndef f(x):\n    return x + x\nassert f(??) == 'abab'\n[/PYTHON]")


def test_outputs(tmp_path):
    fixture.put(tmp_path, "cruxeval/cruxeval.jsonl", ROWS)
    answers = ["\n[ANSWER]\nassert f('ab') == 'abab'\n", "'abab'", "assert f('ab') == 'ab'", "I do not know", "assert f('ab') == f('ab')"]
    found = fixture.answered(catalog.task("cruxeval_o"), tmp_path, answers)
    assert fixture.scores(found, "exact_match") == [1.0, 1.0, 0.0, 0.0, 0.0] and found["unparseable_rate"] == 0.4


def test_types_count(tmp_path):
    rows = [{**ROWS[0], "id": f"{n}", "output": output} for n, output in enumerate(["1", "True", "set()", "{'a': 1}", "(1,)"])]
    found = fixture.answered(
        catalog.task("cruxeval_o"), fixture.put(tmp_path, "cruxeval.jsonl", rows), ["1.0", "1", "set()", '{"a":1}', "[1]"]
    )
    assert fixture.scores(found, "exact_match") == [0.0, 0.0, 1.0, 1.0, 0.0]


def test_inputs(tmp_path):
    tools = Tools(10)
    tools._sandbox = boxes.best()
    fixture.put(tmp_path, "cruxeval/cruxeval.jsonl", ROWS)
    answers = ["\n[ANSWER]\nassert f('ab') == 'abab'\n", "'a'", "f(x='ab')", "f(__import__('os'))", "f('ab') or True == 'abab'"]
    found = fixture.answered(catalog.task("cruxeval_i"), tmp_path, answers, tools=tools)
    assert fixture.scores(found, "exact_match") == [1.0, 0.0, 1.0, 0.0, 0.0] and found["unparseable_rate"] == 0.4


def test_a_malformed_row_is_refused(tmp_path):
    with pytest.raises(DataError, match="field 'output' is missing"):
        catalog.task("cruxeval_o").items(fixture.put(tmp_path, "cruxeval.jsonl", [{"id": "a", "code": "", "input": ""}]))


@small.needs_data
def test_own_outputs_are_right():
    task = catalog.task("cruxeval_o")
    items = task.items(small.DATA)
    assert len(items) == 799 or len(items) == 800
    assert {task.judge(item.row, item.row["output"], Tools()).score for item in items} == {1.0}
