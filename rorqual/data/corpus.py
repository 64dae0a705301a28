"""Which documents a build reads: inputs become named sources, sources become file ranges of bounded size. Report section 4.1.

A range is the unit of work: plain data, read by a pure function (records.py), so any executor can run it anywhere the files
are visible. Order is defined by the inputs (as given, files of a folder by path), never by who finishes first.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from rorqual.errors import DataError

TEXT_SUFFIXES: Final = (".txt", ".md", ".rst", ".py")
_KINDS: Final = {".jsonl": "jsonl", ".jsonl.gz": "gzip", ".jsonl.zst": "zstd", ".parquet": "parquet"} | dict.fromkeys(
    TEXT_SUFFIXES, "files"
)
SUPPORTED: Final = ", ".join(_KINDS)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\Z")
_NAMED: Final = re.compile(r"([^=/\\]*)=(.+)\Z", re.DOTALL)
UNNAMED: Final = "text"
"""Source of inputs without a name."""
_COMPRESSED: Final = 4
_LARGEST_RANGE: Final = 256 << 20
_SMALLEST_RANGE: Final = 2 << 20
_RANGES: Final = 4096


@dataclass(frozen=True)
class Range:
    """Part of a source. `start` and `stop` count bytes (jsonl), row groups (parquet) or documents (arithmetic); other kinds are read whole."""

    source: str
    kind: str
    files: tuple[str, ...]
    start: int = 0
    stop: int = 0
    size: int = 0
    """Bytes of text, an estimate where the input is compressed."""


@dataclass(frozen=True)
class File:
    """One input file as found when the build was planned."""

    source: str
    kind: str
    path: str
    size: int
    changed: int
    """Modification time in ns: a resumed build refuses inputs that changed in between."""


def find_files(inputs: Iterable[str]) -> list[File]:
    """Files of all inputs (`path`, `glob`, `folder`, each also as `name=...`), in order. DataError for one that is missing or unreadable."""
    found: list[File] = []
    for item in inputs:
        named = None if os.path.exists(item) else _NAMED.match(item)
        source, path = (named[1], named[2]) if named else (UNNAMED, item)
        check_name(source)
        paths = list(_expand(path))
        if not paths:
            raise DataError(f"{path} holds no file of a supported kind; supported are {SUPPORTED}")
        found += [_file(source, each) for each in paths]
    return found


def check_name(source: str) -> None:
    """DataError unless `source` can be the name of a folder beside `tokenizer/`."""
    if not _NAME.match(source) or source == "tokenizer":
        raise DataError(
            f"source name {source!r} must be letters, digits, '-' or '_', and not 'tokenizer'; write name=path, for example code=src/"
        )


def kind_of(path: str) -> str | None:
    """How a file is read, by its suffix; None if it is not supported."""
    name = path.lower()
    return next((kind for suffix, kind in _KINDS.items() if name.endswith(suffix)), None)


def _expand(path: str) -> Iterator[str]:
    if os.path.isdir(path):
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
            for name in sorted(names):
                file = os.path.join(folder, name)
                if not name.startswith(".") and kind_of(name) and (os.path.isfile(file) or os.path.islink(file)):
                    yield file
    elif os.path.lexists(path):
        if kind_of(path) is None:
            raise DataError(f"{path} has an unknown suffix; supported are {SUPPORTED}, so rename or convert the file")
        yield path
    elif glob.has_magic(path):
        for each in sorted(glob.glob(path, recursive=True)):
            if not os.path.isdir(each) and kind_of(each):
                yield each
    else:
        raise DataError(f"{path} does not exist; give a folder, a glob or a file ({SUPPORTED}), or name=path")


def _file(source: str, path: str) -> File:
    try:
        if not os.path.isfile(path):
            raise DataError(f"{path} is not a regular file (a broken link, a pipe or a device); remove it from the input")
        with open(path, "rb") as opened:
            status = os.fstat(opened.fileno())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check its permissions, or leave it out") from error
    return File(source, kind_of(path) or "files", os.path.abspath(path), status.st_size, status.st_mtime_ns)


def estimated_bytes(files: Iterable[File]) -> int:
    """Bytes of text in `files`; compressed kinds count four times their size."""
    return sum(file.size * (1 if file.kind in ("jsonl", "files") else _COMPRESSED) for file in files)


def text_bytes(spans: list[Range]) -> int:
    """Bytes of text in `spans`, the same however the input was cut: docstrings count as an eighth of all code, not of each range."""
    code = sum(span.size for span in spans if span.kind == "files" and span.source == "code")
    docstrings = code // 8 if any(span.kind == "docstrings" for span in spans) else 0
    return sum(span.size for span in spans if span.kind != "docstrings") + docstrings


def range_bytes(total: int) -> int:
    """Bytes of a range: small enough to share the work, large enough that a terabyte has a few thousand."""
    return min(max(total // _RANGES, _SMALLEST_RANGE), _LARGEST_RANGE)


def ranges(files: Iterable[File], text_field: str, size: int) -> list[Range]:
    """Cut `files` into ranges of about `size` bytes, in order. Compressed files are one range each."""
    found: list[Range] = []
    pending: list[File] = []

    def flush() -> None:
        if pending:
            first = pending[0]
            found.append(Range(first.source, first.kind, tuple(file.path for file in pending), size=sum(file.size for file in pending)))
            pending.clear()

    for file in files:
        if file.kind != "files" or (pending and pending[0].source != file.source):
            flush()
        if file.kind == "files":
            pending.append(file)
            if sum(each.size for each in pending) >= size or len(pending) >= 4096:
                flush()
        elif file.kind == "jsonl":
            for start in range(0, max(file.size, 1), size):
                stop = min(start + size, file.size)
                found.append(Range(file.source, file.kind, (file.path,), start, stop, stop - start))
        elif file.kind == "parquet":
            found += _row_groups(file, text_field, size)
        else:
            found.append(Range(file.source, file.kind, (file.path,), size=file.size * _COMPRESSED))
    flush()
    return found


def _row_groups(file: File, text_field: str, size: int) -> Iterator[Range]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file.path) as opened:
            names = opened.schema_arrow.names
            if text_field not in names:
                raise DataError(f"{file.path} has no column {text_field!r}, only {', '.join(names)}; name one with --text-field")
            kind = opened.schema_arrow.field(text_field).type
            strings = (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(), pyarrow.binary(), pyarrow.large_binary())
            value = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
            if value not in strings:
                raise DataError(f"column {text_field!r} of {file.path} holds {kind}, not text; name a string column with --text-field")
            groups = [opened.metadata.row_group(index).total_byte_size for index in range(opened.metadata.num_row_groups)]
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {file.path} as Parquet: {error}; check the file, or leave it out") from error
    start, collected = 0, 0
    for index, group in enumerate(groups):
        collected += group
        if collected >= size or index == len(groups) - 1:
            yield Range(file.source, file.kind, (file.path,), start, index + 1, collected)
            start, collected = index + 1, 0
