"""Rows of an evaluation file: JSON lines, JSON, TSV, CSV or Parquet, also gzipped; a broken row is named by file and number. No torch.

Nothing is downloaded: the file is where the user says, or the task tells what it needs. A file that a benchmark ships as several is
given by all of its rows.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rorqual.errors import DataError

Row = dict[str, Any]


def find(data: Path, places: Sequence[str]) -> Path | None:
    """The first of the places that exists: `data` itself where it is a file, else below the folder."""
    if data.is_file():
        return data
    return next((data / place for place in places if (data / place).exists()), None)


def read_rows(path: Path, columns: Sequence[str] = ()) -> list[Row]:
    """Every row, in order; `columns` name those of a table without a head. DataError for what is not such a file."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        return _parquet(path)
    text = _text(path)
    if name.endswith((".tsv", ".csv")):
        reader = csv.reader(io.StringIO(text), delimiter="\t" if name.endswith(".tsv") else ",", quoting=csv.QUOTE_NONE if name.endswith(".tsv") else csv.QUOTE_MINIMAL)  # fmt: skip
        lines = [line for line in reader if line]
        head = list(columns) or (lines.pop(0) if lines else [])
        for number, line in enumerate(lines, 1):
            if len(line) != len(head):
                raise DataError(f"{path}, row {number}: {len(line)} columns, {len(head)} are required ({', '.join(head)})")
        return [dict(zip(head, line, strict=True)) for line in lines]
    if name.endswith(".json"):
        try:
            return _listed(path, json.loads(text))
        except json.JSONDecodeError:
            pass  # some benchmarks call JSON lines .json
    return _json_lines(path, text)


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.name.endswith(".gz") else raw
        return raw.decode("utf-8-sig")
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}); give a file of the form that the task names") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}); correct its encoding") from None


def _json_lines(path: Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON ({error}); every line must hold one object") from None
        if not isinstance(value, dict):
            raise DataError(f"{path}, line {number} holds {type(value).__name__}, an object is required")
        rows.append(value)
    return rows


def _listed(path: Path, value: object) -> list[Row]:
    if isinstance(value, dict):  # BIG-Bench Hard: {"examples": [...]}; SQuAD: {"data": [...]}
        lists = [value[key] for key in ("examples", "data", "rows", "instances") if isinstance(value.get(key), list)]
        value = lists[0] if lists else [value]
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise DataError(f"{path} must hold a list of objects, or an object with one under 'examples' or 'data'")
    return value


def _parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} is no Parquet file ({error})") from None
    return rows


def check_rows(path: Path, rows: Sequence[Row], fields: Sequence[str], ids: Sequence[str]) -> None:
    """DataError for a missing field, a text with half of a surrogate pair, or an id that comes twice; the message names the row."""
    for number, row in enumerate(rows, 1):
        missing = [name for name in fields if name not in row]
        if missing:
            raise DataError(
                f"{path}, row {number}: field {missing[0]!r} is missing; it has {', '.join(map(str, row)) or 'none'}, and "
                f"{', '.join(fields)} are required"
            )
        broken = next((name for name, value in row.items() if _is_broken(value)), None)
        if broken is not None:
            raise DataError(f"{path}, row {number}: field {broken!r} is not valid Unicode text (lone surrogates); correct its encoding")
    seen: dict[str, int] = {}
    for number, one in enumerate(ids, 1):
        if one in seen:
            raise DataError(f"{path}, row {number}: id {one!r} is row {seen[one]}'s already; every item needs an id of its own")
        seen[one] = number


def _is_broken(value: object) -> bool:
    if isinstance(value, str):
        return any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, list):
        return any(map(_is_broken, value))
    return isinstance(value, dict) and any(map(_is_broken, value.values()))
