"""Randomness as a function of a key and a counter: no generator state, the same numbers on every machine and numpy release.

The key is a hash of what the choice is about (seed, purpose, source, epoch); the counter says which choice. A resumed run, another
number of ranks and another order of calls therefore give the same data (field cases F28, F31). The mixing function is the
finaliser of SplitMix64, a bijection of 64-bit words.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1


def key(*parts: int | str) -> int:
    """64-bit key of a tuple of numbers and names; `("a", "b")` and `("ab",)` differ."""
    text = "".join(f"{type(part).__name__}:{len(str(part))}:{part};" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def bits(key: int, counters: NDArray[np.integer]) -> NDArray[np.uint64]:
    """64 random bits per counter; different counters below 2^64 never collide under one key."""
    x = (counters.astype(np.uint64) + np.uint64(1)) * _STEP + np.uint64(key)
    x ^= x >> np.uint64(30)
    x *= _MIX_1
    x ^= x >> np.uint64(27)
    x *= _MIX_2
    x ^= x >> np.uint64(31)
    return x


def chosen(key: int, counters: NDArray[np.integer], rate: float) -> NDArray[np.bool_]:
    """True for the share `rate` of the counters, each on its own; 0 gives none, 1 gives all."""
    return (bits(key, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53 < rate


def permutation(key: int, size: int) -> NDArray[np.int64]:
    """A random order of 0..size-1: counters sorted by their bits, which are distinct, so the order is unique."""
    return np.argsort(bits(key, np.arange(size, dtype=np.uint64)), kind="stable").astype(np.int64, copy=False)


class Draws:
    """A short series of scalar draws under one key, for code that makes choice after choice."""

    def __init__(self, *parts: int | str) -> None:
        self._key = key(*parts)
        self._count = 0

    def below(self, stop: int) -> int:
        """A whole number in 0..stop-1, from the next 64 bits; the bias is at most stop / 2^64."""
        x = (self._key + (self._count + 1) * int(_STEP)) & _MASK
        self._count += 1
        x = ((x ^ (x >> 30)) * int(_MIX_1)) & _MASK
        x = ((x ^ (x >> 27)) * int(_MIX_2)) & _MASK
        return ((x ^ (x >> 31)) * stop) >> 64

    def between(self, low: int, high: int) -> int:
        """A whole number in low..high, both included."""
        return low + self.below(high - low + 1)
