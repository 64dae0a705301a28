"""Samples packed into rows so that little is padding, each isolated from its neighbours (report section 5.1; field case F29).

A sample of L tokens takes L - 1 places: its last token is only a target. Rows are filled best fit, longest first; the order of rows is
a function of (seed, epoch). No sample is cut, none is left out.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rorqual.data import counters
from rorqual.errors import DataError

if TYPE_CHECKING:
    from rorqual.posttrain.sft_data import Samples

NO_TARGET = -100


def pack(places: Sequence[int] | NDArray[np.integer], width: int) -> list[list[int]]:
    """Sample numbers of each row: best fit in falling order of length, so that at most a few rows are not full.

    DataError for a sample that no row can hold.
    """
    lengths = np.asarray(places, dtype=np.int64)
    if lengths.size and int(lengths.max()) > width:
        raise DataError(f"a sample of {int(lengths.max())} tokens does not fit into rows of {width}; drop or shorten it first")
    rows: list[list[int]] = []
    free: list[int] = []  # distinct room left, ascending
    holders: dict[int, list[int]] = {}
    for sample in np.argsort(-lengths, kind="stable").tolist():
        need = int(lengths[sample])
        at = bisect_left(free, need)
        if at < len(free):
            room = free[at]
            row = holders[room].pop()
            if not holders[room]:
                free.pop(at)
            rows[row].append(sample)
        else:
            room, row = width, len(rows)
            rows.append([sample])
        left = room - need
        if left > 0:
            if not holders.setdefault(left, []):
                insort(free, left)
            holders[left].append(row)
    return rows


def row_order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which an epoch sees the rows."""
    return counters.permutation(counters.key("sft-rows", seed, epoch), rows)


@dataclass(frozen=True)
class PackedRows:
    """Rows of one batch as arrays [rows, width]: inputs, targets (-100: none), segment numbers (-1: padding)."""

    input_ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    segment_ids: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Places that hold a token, padding apart."""
        return int((self.segment_ids >= 0).sum())


def fill(samples: Samples, rows: Sequence[Sequence[int]], pad_id: int = 0) -> PackedRows:
    """The samples of each row side by side, padded to the longest row; no target reaches over a border."""
    width = max(sum(samples.places(number) for number in row) for row in rows)
    input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    targets = np.full((len(rows), width), NO_TARGET, dtype=np.int64)
    segments = np.full((len(rows), width), -1, dtype=np.int64)
    for at, row in enumerate(rows):
        start = 0
        for segment, number in enumerate(row):
            ids, learned = samples.read(number)
            end = start + len(ids) - 1
            input_ids[at, start:end] = ids[:-1]
            targets[at, start:end] = np.where(learned[1:], ids[1:], NO_TARGET)
            segments[at, start:end] = segment
            start = end
    return PackedRows(input_ids, targets, segments)


def efficiency(samples: Samples, rows: Sequence[Sequence[int]], width: int) -> float:
    """Share of the rows' places that hold a token."""
    used = sum(samples.places(number) for row in rows for number in row)
    return used / (len(rows) * width) if rows else 1.0
