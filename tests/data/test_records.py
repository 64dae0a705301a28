"""Bytes as they occur (field case F27): which records become documents, which are counted, under which reason and line."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from rorqual.data import corpus
from rorqual.data.corpus import Range
from rorqual.data.dedup import Split
from rorqual.data.records import Record, read
from rorqual.errors import DataError

SPLIT = Split(0, 0.0)
LONG = "long " * 2000
LINES = [
    b'\xef\xbb\xbf{"text":"alpha"}\n',
    b"\r\n",
    b'{"text":""}\n',
    b'{"text":null}\n',
    b'{"content":"beta"}\n',
    b'{"text":"ga\xffmma"}\n',
    b'{"text":"delta\xe2\x80\xa8epsilon"}\n',
    b'{"text":"bad \\ud83d end"}\n',
    b"[1,2]\n",
    b'{"text":"a"}{"text":"b"}\n',
    json.dumps({"text": LONG}).encode() + b"\n",
    b'{"text":"zeta"}',
]
DOCUMENTS = {1: "alpha", 7: "delta\u2028epsilon", 11: LONG, 12: "zeta"}
REASONS = {
    2: "blank_line",
    3: "empty_text",
    4: "null_text",
    5: "missing_text",
    6: "invalid_utf8",
    8: "lone_surrogate",
    9: "not_an_object",
    10: "extra_data",
}


def _read(path: Path, size: int = 1 << 30) -> list[Record]:
    """All records of a file, lines numbered from its start."""
    records: list[Record] = []
    for span in corpus.ranges(corpus.find_files([str(path)]), "text", size):
        before = len(records)
        records += [record._replace(line=record.line + before) for record in read(span, "text", SPLIT)]
    return records


def _check(records: list[Record]) -> None:
    assert {record.line: record.text for record in records if record.reason is None} == DOCUMENTS
    assert {record.line: record.reason for record in records if record.reason is not None} == REASONS
    assert all(record.raw == record.text.encode() for record in records)


@pytest.mark.parametrize("size", [1, 7, 16, 17, 100, 1 << 30])
def test_every_line_of_f27_at_every_range_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "f27.jsonl"
    path.write_bytes(b"".join(LINES))
    _check(_read(path, size))


def _zstd_frames(data: bytes) -> bytes:
    """Two frames one after the other, as parallel compressors write them."""
    compress = zstandard.ZstdCompressor().compress
    return compress(data[:100]) + compress(data[100:])


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("zst", _zstd_frames)])
def test_compressed_files(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"f27.jsonl.{suffix}"
    path.write_bytes(pack(b"".join(LINES)))
    _check(_read(path))
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"\0" * 8 + whole[8:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"cannot read .*f27\.jsonl\.{suffix}.*repair it or leave it out"):
            _read(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text":"a\0b"}', "invalid_json"),
        (b'{"text":"a', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"text":"a","n":' + b"1" * 5000 + b"}", "invalid_json"),
        (b'{"text":5}', "text_not_a_string"),
        (b'{"text":["a"]}', "text_not_a_string"),
        (b'{"text":" \\n\\t\\u2028"}', "empty_text"),
        (b'"text"', "not_an_object"),
        (b"null", "not_an_object"),
        (b" \t ", "blank_line"),
        (b"\xff\xfe{\0}\0", "invalid_utf8"),
    ],
)
def test_other_lines_that_are_no_document(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text":"first"}\n' + line + b'\n{"text":"last"}\n')
    assert [(record.text, record.reason) for record in _read(path)] == [("first", None), ("", reason), ("last", None)]


def test_characters_that_end_lines_elsewhere_belong_to_the_text(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    text = "a\u2028b\u0085c\x0bd\x0ce\x1cf\rg\0h"
    path.write_bytes(
        json.dumps({"text": text}, ensure_ascii=False).encode() + b"\r\n" + json.dumps({"text": "\ufeffkept"}).encode() + b"\r\n"
    )
    assert [record.text for record in _read(path)] == [text, "\ufeffkept"]


def test_whole_files(tmp_path: Path) -> None:
    contents = {"a.txt": b"\xef\xbb\xbfone\r\ntwo\0", "b.md": b"", "c.py": b" \n", "d.txt": b"caf\xe9", "e.txt": "\u6df1".encode()}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    found = [(Path(record.file).name, record.line, record.text or record.reason) for span in
             corpus.ranges(corpus.find_files([str(tmp_path)]), "text", 4) for record in read(span, "text", SPLIT)]  # fmt: skip
    assert found == [
        ("a.txt", 1, "one\r\ntwo\0"),
        ("b.md", 1, "empty_text"),
        ("c.py", 1, "empty_text"),
        ("d.txt", 1, "invalid_utf8"),
        ("e.txt", 1, "\u6df1"),
    ]


@pytest.mark.parametrize("data", [b"", b"\n\n\r\n", b"\xef\xbb\xbf"])
def test_files_without_a_document(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    assert [record.reason for record in _read(path)] == ["blank_line"] * data.count(b"\n") or data == b"\xef\xbb\xbf"
    assert all(record.reason == "blank_line" for record in _read(path))


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "dictionary"])
def test_parquet(tmp_path: Path, kind: str) -> None:
    values = ["alpha", None, "", "delta\u2028", "\u6df1\u5ea6", "last"]
    column = pyarrow.array(values)
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(getattr(pyarrow, kind)())
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"n": range(6), "text": column}), path, row_group_size=2)
    for size in (1, 1 << 30):
        assert [(record.line, record.text or record.reason) for record in _read(path, size)] == [
            (1, "alpha"), (2, "null_text"), (3, "empty_text"), (4, "delta\u2028"), (5, "\u6df1\u5ea6"), (6, "last")]  # fmt: skip
    assert len(corpus.ranges(corpus.find_files([str(path)]), "text", 1)) == 3


def test_parquet_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([b"ok", b"caf\xe9"], pyarrow.binary())}), path)
    assert [record.reason for record in _read(path)] == [None, "invalid_utf8"]


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    file = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.table({"text": [f"document {n} {'x' * n}" for n in range(2000)]}), file, use_dictionary=False, compression="zstd"
    )
    data = bytearray(file.getvalue())
    data[4:2000] = bytes(1996)
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot read .*x.parquet"):
        _read(path)


def test_a_file_that_has_gone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read .*gone.txt"):
        list(read(Range("text", "files", (str(tmp_path / "gone.txt"),)), "text", SPLIT))


def test_arithmetic_documents_do_not_depend_on_the_range() -> None:
    def texts(*cuts: int) -> list[str]:
        spans = [Range("arithmetic", "arithmetic", (), start, stop) for start, stop in zip(cuts, cuts[1:], strict=False)]
        return [record.text for span in spans for record in read(span, "text", SPLIT)]

    assert len(set(texts(0, 50))) == 50 and texts(0, 50) == texts(0, 7, 8, 50)
