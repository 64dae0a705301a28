"""Reads a file range: every line, row or file becomes a document or a reason why it is none. Report section 4.1.

Lines end at LF alone (U+2028 and U+0085 belong to the text); a byte order mark at the start of a file is skipped; a record belongs to the
range that its first byte lies in. NUL is a character like others where UTF-8 or a JSON escape says so (a raw one inside JSON is not JSON).
Nothing is repaired: a record that is not exactly what it should be is rejected and counted (field case F27).
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, NamedTuple, cast

from rorqual.data.corpus import Range
from rorqual.data.dedup import Split
from rorqual.errors import DataError

BLANK_LINE: Final = "blank_line"
INVALID_UTF8: Final = "invalid_utf8"
INVALID_JSON: Final = "invalid_json"
EXTRA_DATA: Final = "extra_data"
NOT_AN_OBJECT: Final = "not_an_object"
MISSING_TEXT: Final = "missing_text"
NULL_TEXT: Final = "null_text"
TEXT_NOT_A_STRING: Final = "text_not_a_string"
EMPTY_TEXT: Final = "empty_text"
LONE_SURROGATE: Final = "lone_surrogate"

BOM: Final = b"\xef\xbb\xbf"
_BLOCK: Final = 1 << 20


class Record(NamedTuple):
    """A document (`text` and its UTF-8 bytes `raw`), or with a `reason` none."""

    file: str
    line: int
    """1-based inside the range."""
    text: str = ""
    raw: bytes = b""
    reason: str | None = None
    owner: bytes | None = None
    """The digest that decides the validation split, where that is another document's: a docstring follows its source file."""


def read(span: Range, text_field: str, split: Split, held_out: frozenset[bytes] = frozenset()) -> Iterator[Record]:
    """Records of a range, in order. `held_out` concerns the default corpus (stdlib.py). DataError for a file that cannot be read."""
    if span.kind == "docstrings":
        from rorqual.data import stdlib

        return _guarded(span, stdlib.docstring_records(span.files, held_out, split))
    if span.kind == "topics":
        from rorqual.data import stdlib

        return _guarded(span, stdlib.topic_records(span.files))
    if span.kind == "arithmetic":
        from rorqual.data import synthetic

        texts = synthetic.documents(split.seed, span.stop - span.start, span.start)
        return (Record("arithmetic", number, text, text.encode()) for number, text in enumerate(texts, 1))
    readers: dict[str, Callable[[Range, str], Iterator[Record]]] = {
        "files": lambda span, field: (from_bytes(path, 1, _content(path)) for path in span.files),
        "jsonl": _jsonl,
        "gzip": _compressed,
        "zstd": _compressed,
        "parquet": _parquet,
    }
    return _guarded(span, readers[span.kind](span, text_field))


def _guarded(span: Range, records: Iterator[Record]) -> Iterator[Record]:
    try:
        yield from records
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot read {' or '.join(span.files[:3])}: {error}; the file is damaged or unreadable, repair it or leave it out"
        ) from error


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def from_bytes(file: str, line: int, raw: bytes, owner: bytes | None = None) -> Record:
    """The record of a whole text given as bytes."""
    if raw.startswith(BOM):
        raw = raw[len(BOM) :]
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return Record(file, line, reason=INVALID_UTF8)
    if not text or text.isspace():
        return Record(file, line, reason=EMPTY_TEXT)
    return Record(file, line, text, raw, None, owner)


def from_json_line(file: str, line: int, raw: bytes, text_field: str) -> Record:
    """The record of one line of JSON, without a byte order mark."""
    if not raw or raw.isspace():
        return Record(file, line, reason=BLANK_LINE)
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return Record(file, line, reason=INVALID_UTF8)
    except json.JSONDecodeError as error:
        return Record(file, line, reason=EXTRA_DATA if error.msg == "Extra data" else INVALID_JSON)
    except (ValueError, RecursionError):
        return Record(file, line, reason=INVALID_JSON)
    if not isinstance(value, dict):
        return Record(file, line, reason=NOT_AN_OBJECT)
    if text_field not in value:
        return Record(file, line, reason=MISSING_TEXT)
    return _from_value(file, line, value[text_field])


def _from_value(file: str, line: int, value: object) -> Record:
    if value is None:
        return Record(file, line, reason=NULL_TEXT)
    if not isinstance(value, str):
        return Record(file, line, reason=TEXT_NOT_A_STRING)
    if not value or value.isspace():
        return Record(file, line, reason=EMPTY_TEXT)
    try:
        return Record(file, line, value, value.encode("utf-8"))
    except UnicodeEncodeError:
        return Record(file, line, reason=LONE_SURROGATE)


def _jsonl(span: Range, text_field: str) -> Iterator[Record]:
    path = span.files[0]
    with open(path, "rb", buffering=_BLOCK) as file:
        position = span.start
        if position:
            file.seek(position - 1)
            position -= 1
            while part := file.readline(_BLOCK):
                position += len(part)
                if part.endswith(b"\n") or position >= span.stop:
                    break
        number = 0
        while position < span.stop:
            raw = file.readline()
            if not raw:
                break
            if position == 0 and raw.startswith(BOM):
                position, raw = len(BOM), raw[len(BOM) :]
            position += len(raw)
            number += 1
            yield from_json_line(path, number, raw, text_field)


def _compressed(span: Range, text_field: str) -> Iterator[Record]:
    path = span.files[0]
    with _open_gzip(path) if span.kind == "gzip" else _open_zstd(path) as file:
        for number, raw in enumerate(iter(file.readline, b""), 1):
            yield from_json_line(path, number, raw.removeprefix(BOM) if number == 1 else raw, text_field)


def _open_gzip(path: str) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb"))


def _open_zstd(path: str) -> BinaryIO:
    """Through Arrow, which reports a stream that ends too early and reads several frames; `zstandard` returns what there is."""
    import io

    import pyarrow

    return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(path), "zstd"), _BLOCK))


def _parquet(span: Range, text_field: str) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    path = span.files[0]
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BLOCK) as file:
            groups = list(range(span.start, span.stop))
            for batch in file.iter_batches(batch_size=256, row_groups=groups, columns=[text_field], use_threads=False):
                column = batch.column(0)
                if pyarrow.types.is_dictionary(column.type):
                    column = column.dictionary_decode()
                for value in column.cast(pyarrow.large_binary()):
                    number += 1
                    raw = value.as_py()
                    yield Record(path, number, reason=NULL_TEXT) if raw is None else from_bytes(path, number, raw)
    except pyarrow.ArrowException as error:
        raise DataError(f"cannot read {path} as Parquet: {error}; the file is damaged, repair it or leave it out") from error
