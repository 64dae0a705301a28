"""A run's file and its records under way: a cut line is dropped, other facts are refused, nothing is half written."""

from __future__ import annotations

import json
import math

import pytest

from rorqual.errors import DataError, RunError
from rorqual.eval import results
from rorqual.eval.metrics import Estimate

FACTS = {"model": {"name": "m"}, "settings": {"seed": 0}}


def test_records_survive_and_a_cut_line_is_dropped(tmp_path):
    out = tmp_path / "deep" / "run.json"
    with results.Progress(out, FACTS) as progress:
        progress.put("t", [{"id": "a", "x": 1.5}, {"id": "b", "x": math.inf}])
    with progress.path.open("a") as file:
        file.write('{"task": "t", "rec')
    with results.Progress(out, FACTS) as progress:
        assert progress.records == {"t": {"a": {"id": "a", "x": 1.5}, "b": {"id": "b", "x": None}}}
        progress.put("t", [{"id": "c"}])
    assert [json.loads(line) for line in progress.path.read_text().splitlines()][-1] == {"task": "t", "record": {"id": "c"}}
    progress.finish()
    assert not progress.path.exists()


def test_a_run_of_other_facts_is_refused_by_name(tmp_path):
    with results.Progress(tmp_path / "r.json", FACTS):
        pass
    with pytest.raises(RunError, match="differs in settings"):
        results.Progress(tmp_path / "r.json", {**FACTS, "settings": {"seed": 1}}).__enter__()


def test_the_file_is_strict_json_and_read_back(tmp_path):
    out = tmp_path / "r.json"
    results.write(out, {"tasks": {"t": {"value": math.nan, "text": "\ud800x"}}})
    assert results.read(out)["tasks"] == {"t": {"value": None, "text": "?x"}}
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize("content", ["", "[]", '{"format": "other", "tasks": {}}', "\x00"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(DataError, match="no result of rorqual eval"):
        results.read(tmp_path / "r.json")


def test_table_and_estimate():
    assert results.table([["long name", "1"], ["b", "20"]], ["task", "n"]) == "task        n\n---------  --\nlong name   1\nb          20"
    assert results.estimate(Estimate(0.5, 0.1, 3)) == {"value": 0.5, "stderr": 0.1, "n": 3}
