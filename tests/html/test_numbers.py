from __future__ import annotations

import pytest

from rorqual.html.numbers import duration, finite, flops, grouped, percent, short, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (671_026_419_200, "671B"),
        (37_552_297_472, "37.6B"),
        (5_757_392, "5.76M"),
        (1_981, "1.98k"),
        (999, "999"),
        (0.5, "0.5"),
        (0.000123, "0.000123"),
        (0, "0"),
    ],
)
def test_short(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.42 s"),
        (9.96, "10 s"),
        (42.4, "42 s"),
        (60, "1 min"),
        (868, "14 min 28 s"),
        (7500, "2 h 5 min"),
        (7200, "2 h"),
        (273_600, "3 d 4 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_others() -> None:
    assert size(688_574_839_360) == "688.6 GB"
    assert size(17) == "17 bytes"
    assert flops(250.45e9) == "250 GFLOP"
    assert flops(3.7e24) == "3.7 YFLOP"
    assert flops(12) == "12 FLOP"
    assert percent(0.483) == "48.3%"
    assert grouped(91_991) == "91,991"


@pytest.mark.parametrize("value", [None, True, "3", float("nan"), float("inf"), 10**400, [1]])
def test_what_is_no_finite_number(value: object) -> None:
    assert finite(value) is None


def test_finite_keeps_numbers() -> None:
    assert finite(3) == 3.0
    assert finite(-0.5) == -0.5
