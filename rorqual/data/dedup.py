"""Exact deduplication and the validation split, both by a 128-bit hash of a document's bytes. Report section 4.1.

The scan writes the hashes of a range as sorted runs of bounded length. A partition is an interval of hash values: all runs' slices of it fit in
memory, equal hashes meet in it, and the first in input order is kept. So memory does not depend on the corpus, and
the outcome depends neither on ranges nor on workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

RUN: Final = 1 << 17
"""Documents of a sorted run."""
PARTITION: Final = 1 << 19
"""Documents of a partition, about."""


@dataclass(frozen=True)
class Split:
    """Hash of a document under a seed, and whether it is held out for validation: a share `rate` of all hashes."""

    seed: int
    rate: float

    def digest(self, raw: bytes) -> bytes:
        """16 bytes; the seed goes in, so that another seed holds out other documents."""
        return hashlib.blake2b(raw, digest_size=16, salt=self.seed.to_bytes(16, "little")).digest()

    def holds_out(self, digest: bytes) -> bool:
        return int.from_bytes(digest[8:], "little") < self.rate * 2.0**64


class RunWriter:
    """Collects digests in document order and writes them as sorted runs: three columns of 64 bits each (first half, second half, number)."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pending: list[bytes] = []
        self._written = 0
        self.runs: list[int] = []
        """Length of each run written."""

    def add(self, digest: bytes) -> None:
        self._pending.append(digest)
        if len(self._pending) == RUN:
            self.flush()

    def flush(self) -> None:
        """Write what is pending; call once at the end."""
        if not self._pending:
            return
        halves = np.frombuffer(b"".join(self._pending), dtype="<u8").reshape(-1, 2)
        numbers = np.arange(self._written, self._written + len(halves), dtype="<u8")
        order = np.lexsort((numbers, halves[:, 1], halves[:, 0]))
        for column in (halves[order, 0], halves[order, 1], numbers[order]):
            self._file.write(column.tobytes())
        self.runs.append(len(halves))
        self._written += len(halves)
        self._pending.clear()


@dataclass(frozen=True)
class RunFile:
    """Runs of one range; `base` is the number of documents before it."""

    path: str
    runs: tuple[int, ...]
    base: int


def partitions(documents: int) -> list[tuple[int, int]]:
    """Intervals [low, high) of first halves that divide all hashes evenly."""
    count = max(1, -(-documents // PARTITION))
    return [(part * 2**64 // count, (part + 1) * 2**64 // count) for part in range(count)]


def duplicates(files: Iterable[RunFile], low: int, high: int) -> NDArray[np.int64]:
    """Numbers of the documents with a hash in [low, high) that occurred before, ascending."""
    columns: list[list[NDArray[np.uint64]]] = [[], [], []]
    for file in files:
        if not sum(file.runs):
            continue
        data = np.memmap(Path(file.path), dtype="<u8", mode="r")
        start = 0
        for length in file.runs:
            first = data[start : start + length]
            begin = int(np.searchsorted(first, np.uint64(low)))
            end = length if high == 2**64 else int(np.searchsorted(first, np.uint64(high)))
            for place, column in enumerate(columns):
                offset = start + place * length
                values = np.array(data[offset + begin : offset + end])
                column.append(values + np.uint64(file.base) if place == 2 else values)
            start += 3 * length
        del data
    if not columns[0]:
        return np.zeros(0, np.int64)
    first, second, number = (np.concatenate(column) for column in columns)
    order = np.lexsort((number, second, first))
    first, second, number = first[order], second[order], number[order]
    again = (first[1:] == first[:-1]) & (second[1:] == second[:-1])
    return np.sort(number[1:][again]).astype(np.int64)
