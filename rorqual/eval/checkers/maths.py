"""Mathematical answers: found in a text, and compared with the right one: right, wrong, or undecided. No torch.

    answer_of(text)                      what stands in the last \\boxed{}, else behind the last "answer is"; nothing inside reasoning counts
    judge(right, answer, seconds=5)      equal texts and exact rational numbers at once, everything else by `math-verify` in a process

Equality is exact: 0.333 is not 1/3 and 3^-40 is not 3^-41. Where only one side has a unit, the value decides; known units that differ do not
agree. 50\\% is 0.5. A right answer that cannot be read, and a check that runs out of its time, is undecided: counted, never paid.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Literal, NamedTuple

Word = Literal["right", "wrong", "undecided"]

LONGEST = 2000
"""Characters of an answer that are looked at; a longer one is wrong."""


class Verdict(NamedTuple):
    """Right, wrong or undecided, and why where that is not plain."""

    word: Word
    note: str = ""


# ---------------------------------------------------------------------- finding the answer


def boxed(text: str) -> str | None:
    """Contents of the last \\boxed{} or \\fbox{}; None where there is none, or the last one is empty or never closed."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].removeprefix("\\boxed").removeprefix("\\fbox").lstrip(" ")
    if not rest.startswith("{"):  # \boxed 5, as some solutions have it
        found = re.match(r"\\?[\w.]+", rest)
        return found[0] if found else None
    depth = 0
    for place, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:place].strip() or None
    return None


def visible(text: str) -> str | None:
    """What stands behind the reasoning; None where the reasoning was never closed."""
    _, mark, after = text.rpartition("</think>")
    if mark:
        return after
    return None if "<think>" in text else text


_SAID = re.compile(r"answer is|answer:|答案是|答案为|答案[：:]", re.IGNORECASE)


def answer_of(text: str) -> str | None:
    """The answer of a text, None where none can be read. A box that is there and empty is no answer, whatever else is said."""
    shown = visible(text)
    if shown is None:
        return None
    if "\\boxed" in shown or "\\fbox" in shown:
        return boxed(shown)
    marks = list(_SAID.finditer(shown))
    if not marks:
        return None
    said = shown[marks[-1].end() :].strip(" \t:：").partition("\n")[0]
    said = re.sub(r"\s*I hope it is correct\.?\s*$", "", said.strip())
    inner = re.match(r"\$([^$]+)\$", said)
    return (inner[1] if inner else re.sub(r"[.。]$", "", said)).strip() or None


# ---------------------------------------------------------------------- plain values

_UNITS = {
    "m": "m meter metre", "cm": "cm centimeter centimetre", "mm": "mm millimeter millimetre", "km": "km kilometer kilometre",
    "in": "in inch inches", "ft": "ft foot feet", "yd": "yd yard", "mi": "mi mile", "g": "g gram", "kg": "kg kilogram", "lb": "lb pound",
    "l": "l liter litre", "ml": "ml milliliter millilitre", "s": "s sec second", "min": "min minute", "h": "h hr hour", "day": "day",
    "degree": "degree °", "dollar": "dollar", "cent": "cent", "mph": "mph", "km/h": "km/h kmh",
}  # fmt: skip
_UNIT_OF = {word: unit for unit, text in _UNITS.items() for name in text.split() for word in (name, f"{name}s")}
_NUMBER = r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|-?\.\d+"
_QUANTITY = re.compile(rf"(?P<a>{_NUMBER})(?:/(?P<b>{_NUMBER}))?(?P<percent>%?)(?P<unit>[A-Za-z°/ ^0-9]*)")
_FRACTION = re.compile(r"(-?)(\d*)\s*\\frac\s*(?:\{(\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))")


def plain(text: str) -> str:
    """Without dollars, spacing commands, sizes of brackets and a final point; the same mathematics."""
    text = text.strip().strip("$").strip()
    text = re.sub(r"\\(?:left|right|displaystyle|,|!|;|:| |quad|qquad)(?![A-Za-z])", "", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text).replace("\\$", "").replace("\\%", "%").replace("{,}", ",")
    text = re.sub(r"\^\{?\\circ\}?", "°", text).replace("\u2212", "-")
    return re.sub(r"\s+", " ", text).strip().removesuffix(".").removesuffix("。").strip()


def quantity(text: str) -> tuple[Fraction, str] | None:
    """(exact value, unit) of a plain number, fraction or percentage, None for anything else. An unknown unit is ""."""
    text = re.sub(r"\\(?:text|mathrm|mbox|rm)\s*\{([^{}]*)\}", r" \1", plain(text)).strip()
    text = _FRACTION.sub(_slashed, text)
    found = _QUANTITY.fullmatch(text)
    if found is None or len(text) > 400:
        return None
    unit = found["unit"].strip()
    if unit and (unit.lower() not in _UNIT_OF or not (found["unit"][0] == " " or unit.lower() in ("°", "cm", "mm", "km", "kg", "ml"))):
        return None  # 2x is no quantity
    above, below = (Fraction(part.replace(",", "")) for part in (found["a"], found["b"] or "1"))
    if not below:
        return None
    return above / below / (100 if found["percent"] else 1), _UNIT_OF.get(unit.lower(), "")


def _slashed(found: re.Match[str]) -> str:
    """\\frac{1}{2} as 1/2, 1\\frac{1}{2} as 3/2."""
    whole, above, below = int(found[2] or 0), int(found[3] or found[4]), int(found[5] or found[6])
    return f"{found[1]}{whole * below + above}/{below}"


def words_of(text: str) -> tuple[str, bool] | None:
    """(lower-case words, whether LaTeX marks them as text) of an answer that is words, None for mathematics. (A) is the word "a"."""
    inner = re.sub(r"\\(?:text|textbf|textrm|mathrm|mbox)\s*\{([^{}]*)\}", r"\1", plain(text)).strip().strip("()")
    marked = "\\text" in text or "\\mbox" in text or "\\mathrm" in text
    if not re.fullmatch(r"[A-Za-z][A-Za-z '.,\-]*", inner) or (
        not marked and not re.search("[A-Za-z]{3}", inner) and not re.fullmatch("[A-Z]", inner)
    ):
        return None
    return " ".join(re.sub(r"[.,]", " ", inner.lower()).split()), marked


def judge(right: str, answer: str, seconds: float = 5.0) -> Verdict:
    """Whether `answer` is `right`; MissingExtraError where it takes `math-verify` and that is not installed."""
    found = at_once(right, answer)
    if found is not None:
        return found
    from rorqual.eval.checkers import maths_pool

    return maths_pool.judge(right, answer, seconds)


def at_once(right: str, answer: str) -> Verdict | None:
    """The verdict where text and rational numbers are enough, None where they are not."""
    if not right.strip():
        return Verdict("undecided", "there is no right answer")
    text = words_of(right)
    if text is not None and not text[1] and " " in text[0]:
        return Verdict("undecided", "the right answer is prose")
    if not answer.strip():
        return Verdict("wrong", "empty")
    if len(answer) > LONGEST:
        return Verdict("wrong", f"longer than {LONGEST} characters")
    if plain(right) == plain(answer):
        return Verdict("right")
    if text is not None:
        said = words_of(answer)
        return Verdict("right" if said is not None and said[0] == text[0] else "wrong")
    one, other = quantity(right), quantity(answer)
    if one is None or other is None:
        return None
    if one[1] and other[1] and one[1] != other[1]:
        return Verdict("wrong", "another unit")
    return Verdict("right" if one[0] == other[0] else "wrong")
