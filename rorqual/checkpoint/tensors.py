"""Torch tensors in and out of safetensors files: one copy each way, no pickle, no memory map."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from rorqual.checkpoint.shards import Entry
from rorqual.errors import CheckpointError

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Item:
    """A tensor to be written: its header fields now, its values when their turn comes, so that conversion needs one at a time."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    values: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        """Bytes of data in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def item(name: str, tensor: Tensor, dtype: torch.dtype | None = None) -> Item:
    """`tensor` under `name`, converted to `dtype` while it is written."""
    return Item(name, dtype or tensor.dtype, tuple(tensor.shape), lambda: tensor)


def write_file(path: Path, items: Sequence[Item], metadata: Mapping[str, str] | None = None) -> dict[str, int]:
    """Writes one safetensors file and returns the CRC-32 of every tensor's bytes.

    Data is laid out by falling element size, which keeps every tensor aligned. CheckpointError for a dtype that the format
    lacks; OSError of the file system passes through.
    """
    for one in items:
        if one.dtype not in DTYPE_NAMES:
            raise CheckpointError(f"tensor {one.name!r} has dtype {one.dtype}, which safetensors cannot hold")
    ordered = sorted(items, key=lambda one: -one.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for one in ordered:
        begin, end = end, end + one.num_bytes
        header[one.name] = {"dtype": DTYPE_NAMES[one.dtype], "shape": list(one.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    checksums = {}
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for one in ordered:
            values = one.values().detach()
            if tuple(values.shape) != one.shape:
                raise CheckpointError(f"tensor {one.name!r} has shape {tuple(values.shape)}, {one.shape} was announced")
            data = raw_bytes(values.to("cpu", one.dtype))
            file.write(data)
            checksums[one.name] = zlib.crc32(data)
    return checksums


def raw_bytes(tensor: Tensor) -> memoryview:
    """The little-endian bytes of a CPU tensor, in place where it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def read_into(file: BinaryIO, entry: Entry, target: Tensor, checksum: int | None = None) -> None:
    """Fills `target` (same shape; any dtype and device) from an open file, straight into its memory where that is possible.

    CheckpointError when the file ends early or its bytes do not give `checksum`; `target` may be half filled then.
    """
    stored = DTYPES[entry.dtype]
    target = target.detach()
    direct = target.dtype == stored and target.device.type == "cpu" and target.is_contiguous()
    values = target if direct else torch.empty(entry.shape, dtype=stored)
    data = raw_bytes(values)
    file.seek(entry.begin)
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise CheckpointError(f"{entry.file} ended before byte {entry.end}; the file is truncated")
    if checksum is not None and zlib.crc32(data) != checksum:
        raise CheckpointError(f"{entry.file} is corrupt: the checksum of bytes {entry.begin} to {entry.end} is wrong")
    if not direct:
        target.copy_(values)


def read(file: BinaryIO, entry: Entry, checksum: int | None = None) -> Tensor:
    """The tensor of an entry as it is stored."""
    values = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    read_into(file, entry, values, checksum)
    return values


def same_values(first: tuple[BinaryIO, Entry], second: tuple[BinaryIO, Entry], block: int = 1 << 24) -> bool:
    """Whether two stored tensors hold the same bytes and dtype; reads `block` bytes of each at a time."""
    (file_a, a), (file_b, b) = first, second
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    for start in range(0, a.end - a.begin, block):
        count = min(block, a.end - a.begin - start)
        file_a.seek(a.begin + start)
        part = file_a.read(count)
        file_b.seek(b.begin + start)
        if part != file_b.read(count):
            return False
    return True
