"""safetensors files and folders of them, checked as a whole before a byte of data is used; imports no torch.

A file is: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, the data. Everything here
distrusts the file: lengths are compared with the file's size before anything is read, offsets must tile the data exactly,
names in an index may not leave the folder, and pickles are never opened (field cases F05, F06).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from rorqual.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
MAX_INDEX_BYTES = 256_000_000

# bytes per element; the order of the dtypes in a file that we write is by falling size, so that all data is aligned
DTYPE_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
               "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1}  # fmt: skip

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NUMBERED = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: file, dtype as safetensors spells it, shape, first and last byte (exclusive) in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass
class ShardFolder:
    """The tensors of a verified folder, and remarks on what was odd but harmless."""

    path: Path
    tensors: dict[str, Entry]
    files: list[Path]
    notices: list[str] = field(default_factory=list)


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of one safetensors file, in the file's own order.

    Raises CheckpointError, naming file and tensor, when length, JSON, dtype, shape or offsets are not what the format
    demands. Reads nothing but the header, and no header longer than the file or 100 MB.
    """
    try:
        if not path.is_file():  # opening a named pipe would wait for ever
            raise CheckpointError(f"{path} is not a regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little") if size >= 8 else -1
            if length < 2 or length > min(size - 8, MAX_HEADER_BYTES):
                raise CheckpointError(
                    f"{path} is not a whole safetensors file: {size} bytes with a header length of {length}; fetch or write it again"
                )
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    header = _object(text, path, "safetensors header")
    return _check_layout(path, header, 8 + length, size)


def _check_layout(path: Path, header: Mapping[str, Any], start: int, size: int) -> dict[str, Entry]:
    tensors: dict[str, Entry] = {}
    for name, value in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(value, dict):
            raise CheckpointError(f"{path}: entry {name!r} of the header is not an object")
        dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
        if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
            raise CheckpointError(f"{path}: tensor {name!r} has the unknown dtype {dtype!r}")
        if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {shape!r} and data_offsets {offsets!r}; both must be lists of whole numbers"
            )
        begin, end = offsets
        if not 0 <= begin <= end <= size - start:
            raise CheckpointError(
                f"{path}: tensor {name!r} lies at bytes {begin} to {end}, the data has {size - start}; the file is truncated or corrupt"
            )
        if math.prod(shape) * DTYPE_BYTES[dtype] != end - begin:
            raise CheckpointError(f"{path}: tensor {name!r} of shape {shape} and dtype {dtype} does not fill its {end - begin} bytes")
        tensors[name] = Entry(path, dtype, tuple(shape), start + begin, start + end)
    reached = start
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != reached:
            raise CheckpointError(
                f"{path}: tensor {name!r} starts at byte {entry.begin - start} of the data, {reached - start} was expected: tensors overlap or leave a hole"
            )
        reached = entry.end
    if reached != size:
        raise CheckpointError(f"{path} is {size} bytes, its tensors end at {reached}; the file is truncated or corrupt")
    return tensors


def open_folder(path: Path) -> ShardFolder:
    """Verifies a model folder: index against disk, index against headers, headers against file sizes.

    One `model.safetensors`, or shards with or without an index (with or without `metadata`); the index decides where
    there is one. Links are followed, as the cache of the Hugging Face hub needs them; names that lead out of the folder are not.
    Raises CheckpointError for anything missing, duplicated, unsafe, or pickled only.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder; give the folder that holds config.json and the safetensors files")
    index = path / INDEX_NAME
    present = sorted(file.name for file in path.glob("*.safetensors"))
    notices: list[str] = []
    if index.exists():
        weight_map, total_size = _read_index(index)
        names = sorted(set(weight_map.values()))
        absent = [name for name in names if name not in present]
        if absent:
            raise CheckpointError(f"{index} names {some(absent)}, which {path} does not hold; fetch the missing files")
        extra = sorted(set(present) - set(names))
        if extra:
            notices.append(f"ignored {some(extra)}: not named by {INDEX_NAME}")
    else:
        weight_map, total_size = None, None
        names = [SINGLE_NAME] if SINGLE_NAME in present else present
        if not names:
            raise CheckpointError(_nothing_to_read(path))
        _check_numbering(path, names)
    tensors: dict[str, Entry] = {}
    files = [path / name for name in names]
    for file in files:
        for name, entry in read_header(file).items():
            if name in tensors:
                raise CheckpointError(
                    f"tensor {name!r} is in {tensors[name].file.name} and in {file.name}; each tensor must be in one file of {path}"
                )
            tensors[name] = entry
    if weight_map is not None:
        _check_index(index, weight_map, tensors)
        held = sum(entry.end - entry.begin for entry in tensors.values())
        if total_size is not None and total_size != held:
            notices.append(f"{INDEX_NAME} gives total_size {total_size}, the files hold {held} bytes of tensors")
    return ShardFolder(path, tensors, files, notices)


def _read_index(index: Path) -> tuple[dict[str, str], int | None]:
    if not index.is_file():
        raise CheckpointError(f"{index} is not a regular file")
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise CheckpointError(f"{index} is {index.stat().st_size} bytes; an index is at most {MAX_INDEX_BYTES}")
    table = _object(index.read_bytes(), index, "index")
    weight_map = table.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; delete it to read the safetensors files as they are")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or "/" in file or "\\" in file or file.startswith("."):
            raise CheckpointError(f"{index} places tensor {name!r} in {file!r}; only safetensors files inside the folder are read")
    metadata = table.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return weight_map, int(total) if isinstance(total, (int, float)) and math.isfinite(total) else None


def _check_index(index: Path, weight_map: Mapping[str, str], tensors: Mapping[str, Entry]) -> None:
    for name, file in weight_map.items():
        entry = tensors.get(name)
        if entry is None or entry.file.name != file:
            where = "no file has it" if entry is None else f"it is in {entry.file.name}"
            raise CheckpointError(f"{index} places tensor {name!r} in {file}, but {where}")
    unlisted = [name for name in tensors if name not in weight_map]
    if unlisted:
        raise CheckpointError(
            f"{index} does not list {some(unlisted)}, which its files hold; delete the index to read the files as they are"
        )


def _check_numbering(path: Path, names: list[str]) -> None:
    """Shards without an index: a set that says `-of-00003` must have three files."""
    sets: dict[tuple[str, int], set[int]] = {}
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match:
            sets.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (stem, count), numbers in sets.items():
        if len(numbers) != count:
            raise CheckpointError(f"{path} holds {len(numbers)} of the {count} files {stem}-*-of-*.safetensors; fetch the missing ones")


def _nothing_to_read(path: Path) -> str:
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES)
    if pickles:
        return f"{path} holds {some(pickles)} but no safetensors file; pickled weights can run code and are never opened; convert them to safetensors where they came from"
    return f"{path} holds no safetensors file; a model folder has config.json and {SINGLE_NAME}, or shards"


def _object(text: bytes, path: Path, what: str) -> dict[str, Any]:
    """JSON with an object on top and no key twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            keys = [key for key, _ in pairs]
            raise CheckpointError(f"{path}: {what} has {next(key for key in keys if keys.count(key) > 1)!r} twice")
        return table

    try:
        value = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {what} is a {type(value).__name__}, not an object")
    return value


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def some(names: Sequence[str], most: int = 5) -> str:
    """Names for an error message: the first few, and how many more there are."""
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
