"""Samples packed into rows so that little is padding, each isolated from its neighbours (report section 5.1; field case F29).

A sample of L tokens takes L - 1 places: its last token is only a target. Which samples share a row is a function of the seed, the order
of rows of (seed, epoch). No sample is cut, none is left out.
"""

from __future__ import annotations

from collections import deque
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
_WINDOW = 64
"""Samples looked at to fill a row."""
_LEFT_TO_CHOOSE = 3
"""Room kept for that, in samples of mean length."""


def pack(places: Sequence[int] | NDArray[np.integer], width: int, seed: int = 0) -> list[list[int]]:
    """Sample numbers of each row; every sample is in one row, and which ones share a row is a draw of `seed`.

    A row takes samples in the order of the draw while it has room for a few more, then those of the next `_WINDOW` that fill it best. So
    each row is a mix of the whole. (Best fit by falling length fills rows as well, but with samples of one length: some rows would hold
    the short ones and others the long.) DataError for a sample that no row can hold.
    """
    lengths = np.asarray(places, dtype=np.int64)
    if lengths.size and int(lengths.max()) > width:
        raise DataError(f"a sample of {int(lengths.max())} tokens does not fit into rows of {width}; drop or shorten it first")
    order = deque(counters.permutation(counters.key("sft-pack", seed), lengths.size).tolist())
    need, few = lengths.tolist(), _LEFT_TO_CHOOSE * float(lengths.mean()) if lengths.size else 0.0
    rows: list[list[int]] = []
    while order:
        row = [order.popleft()]
        room = width - need[row[0]]
        while order and room - need[order[0]] >= few:
            row.append(order.popleft())
            room -= need[row[-1]]
        window = [order.popleft() for _ in range(min(_WINDOW, len(order)))]
        taken = _fullest([need[sample] for sample in window], room)
        row += [window[at] for at in taken]
        order.extendleft(sample for at, sample in reversed(list(enumerate(window))) if at not in taken)
        rows.append(row)
    return rows


def _fullest(lengths: Sequence[int], room: int) -> list[int]:
    """Which of the lengths together leave the least of `room`, in ascending order; of equal choices one that begins earliest."""
    sums = [1]  # bit s of the k-th: the first k lengths can add up to s
    for length in lengths:
        if sums[-1] >> room:  # it can be filled
            break
        sums.append((sums[-1] | sums[-1] << length) & ((1 << room + 1) - 1))
    best, taken = sums[-1].bit_length() - 1, list[int]()
    for at in reversed(range(len(sums) - 1)):
        if not sums[at] >> best & 1:
            taken.append(at)
            best -= lengths[at]
    return taken[::-1]


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
