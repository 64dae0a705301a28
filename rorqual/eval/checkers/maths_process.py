"""The process that asks `math-verify`: loads it once, then forks a child for each question and ends the child at its limit. No torch.

One JSON object a line: {"right", "answer", "seconds"} in, {"word", "note"} out; {"ready": true} or {"missing": true} first. A child has its own
memory limit and dies with its answer, so what one answer does to the library no other answer sees.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import resource
import select
import signal
import sys
import time
import warnings
from typing import Any

MEMORY = 2 << 30
"""Bytes of address space of a child."""

_WARMING = (
    ("\\frac{1}{2}+x", "x+0.5"),
    ("\\{1,2\\}", "(1,2]"),
    ("2\\sqrt{3}", "\\sqrt{12}"),
    ("k=4", "\\pm\\pi"),
    ("2x", "3x"),
    ("2:30", "5 or 6"),
)


def main() -> None:
    """Serves standard input until it ends. Everything that the library prints goes nowhere."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    try:
        for right, answer in _WARMING:  # loads what every child then has
            compare(right, answer)
    except ImportError:
        out.write(b'{"missing": true}\n')
        return
    gc.freeze()  # else each child would copy what its collector touches
    out.write(b'{"ready": true}\n')
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        out.write(json.dumps(_in_child(asked["right"], asked["answer"], float(asked["seconds"]))).encode() + b"\n")


def _in_child(right: str, answer: str, seconds: float) -> dict[str, str]:
    deadline = time.monotonic() + seconds
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(theirs, right, answer)
    os.close(theirs)
    said = b""
    try:
        while True:
            ready, _, _ = select.select([ours], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return {"word": "undecided", "note": f"no verdict within {seconds:g} s"}
            part = os.read(ours, 4096)
            if not part:
                break
            said += part
    finally:
        os.close(ours)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not said:
        return {"word": "undecided", "note": "the check ended without a verdict (memory, or a fault of the library)"}
    found: dict[str, str] = json.loads(said)
    return found


def _answer(out: int, right: str, answer: str) -> None:
    """In the child: writes the verdict and ends."""
    try:
        gc.disable()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        word, note = compare(right, answer)
        os.write(out, json.dumps({"word": word, "note": note}).encode())
    except MemoryError:
        pass
    except BaseException as error:  # whatever a library raises about a text is no verdict
        with contextlib.suppress(OSError):
            os.write(out, json.dumps({"word": "undecided", "note": f"{type(error).__name__}"}).encode())
    finally:
        os._exit(0)


# ---------------------------------------------------------------------- comparison


def compare(right: str, answer: str) -> tuple[str, str]:
    """(word, note). What `math-verify` calls equal must be equal to 40 digits too: it rounds to six."""
    from math_verify import verify  # type: ignore[import-untyped]

    gold = _parsed(right)
    if gold is None:
        return "undecided", "the right answer cannot be read"
    found = _parsed(answer)
    if found is None:
        return "wrong", "the answer cannot be read"
    if not verify([gold], [found], strict=True, timeout_seconds=None, raise_on_error=True) and not verify(
        [found], [gold], strict=True, timeout_seconds=None, raise_on_error=True
    ):
        return "wrong", ""
    return ("right", "") if _same(gold, found) else ("wrong", "equal only when rounded")


def _parsed(text: str) -> Any:
    """The SymPy object of a formula, None where it cannot be read."""
    from math_verify import LatexExtractionConfig, parse  # type: ignore[import-untyped]

    text = text.strip().strip("$").strip()
    found = parse(f"${text}$", extraction_config=[LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
    return found[0] if found and not isinstance(found[0], str) else None


def _same(one: Any, other: Any) -> bool:
    """Exactly equal, as far as numbers go; what holds no numbers that can be compared was judged already."""
    import sympy  # type: ignore[import-untyped]

    one, other = _value(one), _value(other)
    if one == other:
        return True
    if isinstance(one, sympy.FiniteSet) and isinstance(other, sympy.FiniteSet):
        left = list(other.args)
        for item in one.args:
            partner = next((place for place, mine in enumerate(left) if _same(item, mine)), None)
            if partner is None:
                return False
            left.pop(partner)
        return not left
    if isinstance(one, sympy.Tuple | sympy.Interval) and type(one) is type(other):
        return len(one.args) == len(other.args) and all(map(_same, one.args, other.args))
    if not (getattr(one, "is_number", False) and getattr(other, "is_number", False)):
        return True
    if one.is_Rational and other.is_Rational:
        return bool(one == other)
    first, second = one.evalf(60, maxn=2000), other.evalf(60, maxn=2000)
    size = max(abs(first), abs(second))
    return bool(size == 0 or abs(first - second) <= size * sympy.Rational(1, 10**40))


def _value(thing: Any) -> Any:
    """The right-hand side of x = ..., with decimals as the fractions that they are."""
    import sympy  # type: ignore[import-untyped]

    if isinstance(thing, sympy.Equality) and thing.lhs.is_Symbol:
        thing = thing.rhs
    if isinstance(thing, sympy.Expr):
        thing = thing.replace(lambda part: part.is_Float, lambda part: sympy.Rational(str(part)))
        thing = thing.doit() if thing.is_number else thing
    return thing
