"""Which source the sample number g comes from: an exact, evenly spread share for every source. Report section 4.1 (mixture unpublished).

Sources are ordered by weight. The first takes floor(n p) of the first n samples, p its share; what it leaves is dealt out by
the same rule to the second, and so on (nested Beatty sequences, in integers). So sample g -> (source, row) is a pure function,
needs no table, keeps every batch close to the weights, and misses a source's exact share by less than 2 samples at any g.
Trap avoided: drawing sources at random makes small batches uneven, and one iterator per source cannot be resumed at g.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from rorqual.errors import ConfigError


class Mixture:
    """Samples dealt to sources by weight. Weights are taken exactly as the floating-point numbers they are."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"weight of source {name!r} ({weight}) must be a finite number >= 0")
        exact = {name: Fraction(weight) for name, weight in weights.items() if weight > 0}
        if not exact:
            raise ConfigError(f"all source weights are zero ({dict(weights)}); give at least one source a positive weight")
        self.sources: tuple[str, ...] = tuple(sorted(exact, key=lambda name: (-exact[name], name)))
        self._shares: list[Fraction] = []
        rest = sum(exact.values(), Fraction(0))
        for name in self.sources:
            self._shares.append(exact[name] / rest)
            rest -= exact[name]

    def place(self, sample: int) -> tuple[str, int]:
        """(source, row of that source) of a sample; rows of a source count up from 0 without gaps."""
        before = sample
        for name, share in zip(self.sources, self._shares, strict=True):
            taken = _part(before, share)
            if _part(before + 1, share) > taken:
                return name, taken
            before -= taken
        raise AssertionError("the last source has share 1 and takes every sample left")

    def rows(self, samples: int) -> dict[str, int]:
        """Rows that each source has given to the first `samples` samples."""
        counts, left = {}, samples
        for name, share in zip(self.sources, self._shares, strict=True):
            counts[name] = _part(left, share)
            left -= counts[name]
        return counts


def _part(count: int, share: Fraction) -> int:
    return count * share.numerator // share.denominator
