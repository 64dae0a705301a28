"""Reads every byte of a folder and says whether each tensor holds numbers: what headers cannot tell (field case F08's kind).

A file that was cut is refused by its size; one that was damaged in place has the right size and may hold NaN or infinity. No tensor is
made: bytes are looked at as integers through the memory map, a few megabytes at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rorqual.checkpoint.source import FolderSource

_PIECE = 1 << 21
_EXPONENTS: dict[str, tuple[Any, int]] = {"F32": (np.uint32, 0x7F800000), "BF16": (np.uint16, 0x7F80), "F16": (np.uint16, 0x7C00), "F8_E4M3": (np.uint8, 0x7F),
                                          "F8_E8M0": (np.uint8, 0xFF)}  # fmt: skip
"""Per dtype: its integer, and the bits that are all set in NaN and infinity (E4M3 has no infinity, E8M0 only NaN)."""


@dataclass(frozen=True)
class Verified:
    """`bad` maps a tensor's name to how many of its values are NaN or infinite."""

    tensors: int
    num_bytes: int
    seconds: float
    bad: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether every value is a number."""
        return not self.bad


def verify(folder: str | Path, progress: Callable[[int, int, str], None] | None = None) -> Verified:
    """Checks names, shapes, dtypes and scales as a load would, then every value. Raises what FolderSource raises."""
    began = time.monotonic()
    with FolderSource(folder) as source:
        names = list(source.stored_names())
        total = sum(source.stored_entry(name).end - source.stored_entry(name).begin for name in names)
        done, bad = 0, {}
        for name in names:
            if progress is not None:
                progress(done, total, name)
            raw, dtype = source.raw(name), source.stored_entry(name).dtype
            wrong = _not_numbers(raw, dtype)
            if wrong:
                bad[name] = wrong
            done += len(raw)
            source.release(name)
    if progress is not None:
        progress(total, total, "")
    return Verified(len(names), total, time.monotonic() - began, bad)


def _not_numbers(raw: NDArray[np.uint8], dtype: str) -> int:
    """How many elements have all exponent bits set (and, for E4M3, all bits but the sign)."""
    if dtype not in _EXPONENTS:  # integers of a tensor that no model reads: looked at, and always numbers
        raw.max(initial=0)
        return 0
    integer, bits = _EXPONENTS[dtype]
    if len(raw) % integer().itemsize or raw.ctypes.data % integer().itemsize:
        raw = raw.copy()
    values = raw.view(integer)
    step = _PIECE // values.itemsize
    buffer = np.empty(min(step, len(values)), integer)
    found = 0
    for at in range(0, len(values), step):
        part = values[at : at + step]
        masked = np.bitwise_and(part, integer(bits), out=buffer[: len(part)])
        if masked.size and masked.max() == bits:
            found += int((masked == bits).sum())
    return found
