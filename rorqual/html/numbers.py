"""Numbers as people read them: short with a unit letter, whole with separators, durations, shares, bytes (1 kB = 1000 B)."""

from __future__ import annotations

import math
from typing import Any

_LETTERS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def finite(value: Any) -> float | None:
    """The value as a float when it is a finite number (a bool or a text is none)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def short(value: float, digits: int = 3) -> str:
    """Few digits and a letter: 5.76M, 37.6B, 0.000123."""
    for size, letter in _LETTERS:
        if abs(value) >= size:
            return f"{_trim(value / size, digits)}{letter}"
    return _trim(value, digits)


def grouped(value: float) -> str:
    """A whole number with separators of thousands."""
    return f"{round(value):,}"


def percent(share: float, digits: int = 1) -> str:
    """A share as per cent."""
    return f"{100 * share:.{digits}f}%"


def size(num_bytes: float) -> str:
    """Bytes with a decimal unit: 688.6 GB."""
    for unit, name in _SIZES:
        if abs(num_bytes) >= unit:
            return f"{num_bytes / unit:.4g} {name}"
    return f"{round(num_bytes)} bytes"


def flops(value: float) -> str:
    """Floating-point operations with a decimal prefix: 28.1 TFLOP."""
    for unit, name in ((1e24, "YFLOP"), (1e21, "ZFLOP"), (1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")):
        if abs(value) >= unit:
            return f"{_trim(value / unit, 3)} {name}"
    return f"{_trim(value, 3)} FLOP"


def duration(seconds: float) -> str:
    """Seconds as 0.42 s, 42 s, 13 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    for large, name, small, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large} {name} {rest} {below}" if rest else f"{whole // large} {name}"
    return f"{whole} s"


def _trim(value: float, digits: int) -> str:
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text else text
