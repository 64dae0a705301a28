"""Documents of a text task: files, folders and rows; what is no text is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import catalog
from rorqual.eval.textbits import TextTask


def _task() -> TextTask:
    task = catalog.task("bpb")
    assert isinstance(task, TextTask)
    return task


def test_files_folders_and_rows_are_documents(tmp_path):
    (tmp_path / "a.txt").write_text("one \u00e9")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.jsonl").write_text(json.dumps({"text": "two"}) + "\n" + json.dumps({"text": ""}) + "\n")
    assert [(item.id, item.prompt) for item in _task().items(tmp_path)] == [("a.txt", "one \u00e9"), ("deep/b.jsonl:0", "two"), ("deep/b.jsonl:1", "")]  # fmt: skip
    assert [item.id for item in _task().items(tmp_path / "deep" / "b.jsonl", limit=1)] == ["b.jsonl:0"]


@pytest.mark.parametrize(("name", "raw", "message"), [("a.txt", b"\xff", "UTF-8"), ("a.jsonl", b'{"body": 1}', "'text' is missing"), ("a.jsonl", b'{"text": 1}', "holds int"), ("a.txt", b"", "no text")])  # fmt: skip
def test_what_is_no_text_is_refused(tmp_path: Path, name, raw, message):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=message):
        _task().items(tmp_path / name)


def test_without_data_the_task_says_what_it_needs(tmp_path):
    with pytest.raises(DataError, match=r"task bpb needs .*pile/test.jsonl.*field 'text'"):
        _task().items(tmp_path)
