"""Mixture: exact shares, no gaps, a pure function of the sample number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rorqual.data.mixture import Mixture
from rorqual.errors import ConfigError

weights = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.001, 100), min_size=1)


def test_the_first_samples_of_three_to_one() -> None:
    mixture = Mixture({"a": 3.0, "b": 1.0})
    assert [mixture.place(g) for g in range(8)] == [("b", 0), ("a", 0), ("a", 1), ("a", 2), ("b", 1), ("a", 3), ("a", 4), ("a", 5)]


@given(weights, st.integers(0, 300))
def test_rows_of_every_source_count_up_without_gaps(table: dict[str, float], samples: int) -> None:
    mixture = Mixture(table)
    seen = dict.fromkeys(table, 0)
    for g in range(samples):
        source, row = mixture.place(g)
        assert row == seen[source]
        seen[source] += 1
    assert mixture.rows(samples) == seen


@given(weights, st.integers(0, 10**15))
def test_shares_are_exact_within_two_samples_anywhere(table: dict[str, float], samples: int) -> None:
    rows, total = Mixture(table).rows(samples), sum(table.values())
    assert sum(rows.values()) == samples
    for name, weight in table.items():
        assert abs(rows[name] - samples * weight / total) < 2 + samples * 1e-14


@given(weights, st.integers(0, 10**15))
def test_place_is_the_step_of_rows(table: dict[str, float], sample: int) -> None:
    mixture = Mixture(table)
    source, row = mixture.place(sample)
    assert mixture.rows(sample)[source] == row
    assert mixture.rows(sample + 1)[source] == row + 1


def test_scale_and_order_of_weights_do_not_matter() -> None:
    one, two = Mixture({"x": 1.0, "y": 0.5, "z": 0.25}), Mixture({"z": 0.5, "x": 2.0, "y": 1.0})
    assert [one.place(g) for g in range(50)] == [two.place(g) for g in range(50)]


def test_zero_weights() -> None:
    assert Mixture({"a": 1.0, "b": 0.0}).sources == ("a",)
    with pytest.raises(ConfigError, match="all source weights are zero"):
        Mixture({"a": 0.0})
    with pytest.raises(ConfigError, match=r"weight of source 'a' \(nan\)"):
        Mixture({"a": float("nan")})
