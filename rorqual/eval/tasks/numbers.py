"""Numbers in answers: found, read exactly and compared as rationals, never as floats. No torch."""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")


def last_number(text: str) -> str | None:
    """The last number as it is written."""
    found = _NUMBER.findall(text)
    return found[-1] if found else None


def value(text: str) -> Fraction | None:
    """A written number exactly; commas, a dollar sign and a final point are no part of it. None for anything else."""
    plain = text.strip().replace(",", "").replace("$", "").rstrip(".")
    try:
        return Fraction(plain) if re.fullmatch(r"[-+]?(\d{1,100}(\.\d{0,100})?|\.\d{1,100})(/\d{1,100})?", plain) else None
    except (ValueError, ZeroDivisionError):
        return None


def same_number(one: str, other: str) -> bool:
    """Whether both are numbers of equal value."""
    first = value(one)
    return first is not None and first == value(other)
