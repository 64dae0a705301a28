"""Numbers read exactly."""

from __future__ import annotations

from fractions import Fraction

import pytest

from rorqual.eval.tasks import numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [("1,234.50", Fraction(2469, 2)), ("$5.", 5), ("-3", -3), ("1/3", Fraction(1, 3)), (".5", Fraction(1, 2)), ("1/0", None), ("x", None), ("", None), ("9" * 101, None)],
)  # fmt: skip
def test_value(text, value):
    assert numbers.value(text) == value


def test_last_and_same():
    assert numbers.last_number("3 and -1,200.5 whales") == "-1,200.5" and numbers.last_number("none") is None
    assert numbers.same_number("0.50", ".5") and not numbers.same_number("0.3333333", "1/3") and not numbers.same_number("x", "x")
