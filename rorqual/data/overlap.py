"""Near-duplicates between validation and training documents, by overlap of shingles. Report section 4.1 (less redundancy), decontamination.

A shingle is a run of 32 bytes that are not white space. Each validation document is described by its shingles with the smallest hashes
(a sketch, so memory is bounded); training documents are searched for all of them while they are encoded. A validation document most of whose
sketch occurs anywhere in training text measures memory, not modelling, and is left out. Texts under 32 bytes have no shingle and stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rorqual.data import counters

WIDTH: Final = 32
_WHITE: Final = b" \t\n\r\x0b\x0c"
_BLOCK: Final = 1 << 14
_FACTOR: Final = 0x9E3779B97F4A7C15
_MASK: Final = (1 << 64) - 1
_MIXING: Final = counters.key("shingle")


def shingles(raw: bytes) -> Iterator[NDArray[np.uint64]]:
    """Hashes of all shingles of `raw`, block by block."""
    dense = np.frombuffer(raw.translate(None, _WHITE), dtype=np.uint8)
    for start in range(0, len(dense) - WIDTH + 1, _BLOCK):
        values = dense[start : start + _BLOCK + WIDTH - 1].astype(np.uint64)
        values += np.uint64(1)
        width, factor = 1, _FACTOR
        while width < WIDTH:  # the hash of 2w bytes from two hashes of w bytes: five steps instead of 32
            values = values[:-width] * np.uint64(factor) + values[width:]
            width, factor = 2 * width, factor * factor & _MASK
        yield values


def sketch(raw: bytes) -> NDArray[np.uint64]:
    """A document's shingle hashes, one per 64 bytes, 4 to 64 of them: those whose mixed values are smallest; ascending and different."""
    size = min(max(len(raw) // 64, 4), 64)
    kept = np.zeros(0, np.uint64)
    for block in shingles(raw):
        candidates = np.unique(np.concatenate([kept, block]))
        mixed = counters.bits(_MIXING, candidates)
        kept = candidates[np.argsort(mixed, kind="stable")[:size]]
    return np.sort(kept)


class Finder:
    """Searches texts for the shingles of all sketches."""

    def __init__(self, hashes: NDArray[np.uint64]) -> None:
        """`hashes` ascending and different. A table of bits turns away nearly all other shingles before the exact search."""
        self._hashes = hashes
        bits = max(12, min(24, int(8 * max(len(hashes), 1)).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._maybe = np.zeros(1 << bits, dtype=bool)
        self._maybe[hashes >> self._shift] = True
        self.found = np.zeros(len(hashes), dtype=bool)
        """Which hashes have been seen."""

    def search(self, raw: bytes) -> None:
        """Mark the hashes that occur in `raw`."""
        if not len(self._hashes):
            return
        for block in shingles(raw):
            likely = block[self._maybe[block >> self._shift]]
            place = np.searchsorted(self._hashes, likely)
            place[place == len(self._hashes)] = 0
            self.found[place[self._hashes[place] == likely]] = True
