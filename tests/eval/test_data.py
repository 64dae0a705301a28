"""Every form of file is read, and a broken row is named by file and number."""

from __future__ import annotations

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from rorqual.errors import DataError
from rorqual.eval.data import check_rows, find, read_rows

ROWS = [{"q": "a", "n": 1}, {"q": "\u6df1\u2028b", "n": 2}]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "lines.json", "x.jsonl.gz", "x.parquet", "examples.json"])
def test_every_form_gives_the_same_rows(tmp_path, name):
    path = tmp_path / name
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n"
    if name == "x.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif name == "x.jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text({"x.json": json.dumps(ROWS), "examples.json": json.dumps({"canary": "x", "examples": ROWS})}.get(name, lines))
    assert read_rows(path) == ROWS


def test_tables_without_and_with_a_head(tmp_path):
    (tmp_path / "a.tsv").write_text('He said "no"\t18\n')
    assert read_rows(tmp_path / "a.tsv", ("question", "answer")) == [{"question": 'He said "no"', "answer": "18"}]
    (tmp_path / "a.csv").write_text('question,answer\n"a, b",3\n')
    assert read_rows(tmp_path / "a.csv") == [{"question": "a, b", "answer": "3"}]
    (tmp_path / "b.tsv").write_text("only one\n")
    with pytest.raises(DataError, match=r"b.tsv, row 1: 1 columns, 2 are required"):
        read_rows(tmp_path / "b.tsv", ("question", "answer"))


@pytest.mark.parametrize(("raw", "message"), [(b'{"q": 1}\n{"q": ', "line 2 is not JSON"), (b"[1]\n", "line 1 holds list"), (b"\xff\xfe{}", "not UTF-8")])  # fmt: skip
def test_broken_files_are_named(tmp_path, raw, message):
    (tmp_path / "a.jsonl").write_bytes(raw)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / "a.jsonl")


def test_missing_fields_double_ids_and_half_characters(tmp_path):
    path = tmp_path / "a.jsonl"
    with pytest.raises(DataError, match=r"row 2: field 'n' is missing; it has q"):
        check_rows(path, [{"q": "", "n": 1}, {"q": ""}], ("q", "n"), ())
    with pytest.raises(DataError, match=r"row 3: id '7' is row 1's already"):
        check_rows(path, [{}, {}, {}], (), ("7", "8", "7"))
    with pytest.raises(DataError, match=r"row 1: field 'c' is not valid Unicode"):
        check_rows(path, [{"c": ["a", "\ud800"]}], (), ())


def test_the_first_place_that_exists_is_taken(tmp_path):
    (tmp_path / "b.jsonl").write_text("{}")
    assert find(tmp_path, ("a.jsonl", "b.jsonl")) == tmp_path / "b.jsonl"
    assert find(tmp_path, ("a.jsonl",)) is None
    assert find(tmp_path / "b.jsonl", ("a.jsonl",)) == tmp_path / "b.jsonl"
