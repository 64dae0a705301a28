"""A safetensors file written piece by piece, so that a tensor never has to be in memory as a whole.

    with TensorFile(path, entries, metadata) as file:
        for rows in blocks: file.append(rows)

The header goes first and fixes every place; then the data comes in the header's order. Data is laid out by falling element size, which
keeps every tensor aligned.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from rorqual.checkpoint.shards import DTYPE_BYTES
from rorqual.checkpoint.tensors import DTYPES, raw_bytes
from rorqual.errors import CheckpointError


@dataclass(frozen=True)
class Planned:
    """Name, dtype (as safetensors spells it) and shape of a tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def in_file_order(entries: Sequence[Planned]) -> list[Planned]:
    """The order in which the data of one file is written."""
    return sorted(entries, key=lambda one: -DTYPE_BYTES[one.dtype])


class TensorFile:
    """One file being written. CheckpointError if a tensor gets more or fewer bytes than were planned, or another dtype."""

    def __init__(self, path: Path, entries: Sequence[Planned], metadata: Mapping[str, str] | None = None) -> None:
        self.path = path
        self._planned = in_file_order(entries)
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        end = 0
        for one in self._planned:
            begin, end = end, end + one.num_bytes
            header[one.name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._current: Planned | None = None
        self._left = 0
        self._waiting = iter(self._planned)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None and (self._left or next(self._waiting, None) is not None):
                raise CheckpointError(f"{self.path}: tensors were announced that were not written")
            self._file.flush()
            if error is None:
                os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def tensors(self) -> Iterator[Planned]:
        """Steps through the tensors in file order; the caller appends all bytes of one before it takes the next."""
        for one in self._waiting:
            self._current, self._left = one, one.num_bytes
            yield one
            if self._left:
                raise CheckpointError(f"{self.path}: tensor {one.name!r} lacks {self._left} of {one.num_bytes} bytes")

    def append(self, rows: Tensor) -> None:
        """The next rows of the current tensor, in its dtype (FP8 codes may come as uint8)."""
        assert self._current is not None
        want = DTYPES[self._current.dtype]
        if rows.dtype != want and not (rows.dtype == torch.uint8 and want.itemsize == 1):
            raise CheckpointError(f"{self.path}: tensor {self._current.name!r} is planned as {self._current.dtype}, not {rows.dtype}")
        data = raw_bytes(rows.detach())
        if len(data) > self._left:
            raise CheckpointError(f"{self.path}: tensor {self._current.name!r} gets {len(data)} bytes, {self._left} are left")
        self._file.write(data)
        self._left -= len(data)
