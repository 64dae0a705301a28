"""Fill in the middle: a document rearranged as prefix, suffix, middle (PSM) at rate 0.1. Report section 4.1.

    <fim_begin> prefix <fim_hole> suffix <fim_end> middle <eos>

Both cuts fall between tokens, at two independent uniform places in 0..n, sorted: the report does not give the distribution, and
cuts inside a token would need the tokenizer at load and a length that is not known before. A document becomes three tokens
longer, whatever the cuts, so the place of every later document is known without making any of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rorqual.data import counters

ADDED_TOKENS = 3


@dataclass(frozen=True)
class FimTokens:
    """Ids of the three markers in the tokenizer at hand; found by their strings, never by number."""

    begin: int
    hole: int
    end: int


@dataclass(frozen=True)
class Fim:
    """The choices of one epoch of one source; a pure function of (seed, source, epoch, document)."""

    seed: int
    source: str
    epoch: int
    rate: float

    def selected(self, lengths: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which documents are rearranged, by document number; a document of fewer than 3 tokens has nothing to fill in and stays."""
        if not self.rate:
            return np.zeros(len(lengths), dtype=bool)
        picks = counters.chosen(counters.key(self.seed, "fim", self.source, self.epoch), np.arange(len(lengths)), self.rate)
        return picks & (lengths >= 3)

    def cuts(self, document: int, length: int) -> tuple[int, int]:
        """Start and end of the middle, 0 <= start <= end <= length."""
        draws = counters.Draws(self.seed, "fim cuts", self.source, self.epoch, document)
        first, second = draws.between(0, length), draws.between(0, length)
        return min(first, second), max(first, second)


Part = int | tuple[int, int]
"""A marker's id, or a range of the document's tokens."""


def parts(length: int, cuts: tuple[int, int], tokens: FimTokens) -> list[Part]:
    """The rearranged document as markers and ranges of the original, so that a row copies only what it shows of it."""
    start, end = cuts
    return [tokens.begin, (0, start), tokens.hole, (end, length), tokens.end, (start, end)]
