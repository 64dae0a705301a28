"""Means, intervals, pass@k, majority, perplexity and bits per byte against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from rorqual.errors import ConfigError
from rorqual.eval import metrics


def test_mean_and_standard_error():
    one = metrics.mean([1.0, 0.0, 1.0, 1.0])  # s^2 = 0.25, s/sqrt(n) = 0.5/2
    assert (one.value, one.stderr, one.n) == (0.75, 0.25, 4)
    assert metrics.mean([3.0]) == metrics.Estimate(3.0, 0.0, 1)
    assert math.isnan(metrics.mean([]).value)


def test_wilson_interval():
    low, high = metrics.wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4901625, abs=1e-6), pytest.approx(0.9433178, abs=1e-6))
    assert metrics.wilson(0, 0) == (0.0, 1.0) and metrics.wilson(0, 10)[0] == 0.0


def test_pass_at_k_is_unbiased():
    """F40: n 5, c 2, k 3 gives 0.9; n < k is refused."""
    assert metrics.pass_at_k(5, 2, 3) == pytest.approx(0.9)
    assert metrics.pass_at_k(10, 0, 5) == 0.0 and metrics.pass_at_k(3, 1, 3) == 1.0 and metrics.pass_at_k(4, 1, 1) == 0.25
    with pytest.raises(ConfigError, match="pass@3 needs at least 3"):
        metrics.pass_at_k(2, 1, 3)


def test_majority_takes_the_first_of_equal_ones_and_ignores_what_could_not_be_read():
    assert metrics.majority(["4", None, "7", "7", None, None]) == "7"
    assert metrics.majority(["4", "7"]) == "4"
    assert metrics.majority([None, None]) is None


def test_perplexity_and_bits_per_byte():
    """F40: the text of six bytes with 12 nats has 12 / (ln 2 * 6) = 2.885390 bits per byte."""
    assert len("\u00e9\U0001f642".encode()) == 6
    assert metrics.bits_per_byte([12.0], [6]).value == pytest.approx(2.885390, abs=1e-6)
    two = metrics.bits_per_byte([math.log(2) * 8, math.log(2) * 4], [4, 4])
    assert two.value == pytest.approx(1.5) and two.stderr == pytest.approx(0.5)
    assert metrics.perplexity([math.log(0.25), math.log(0.25)]).value == pytest.approx(4.0)


def test_bootstrap_is_a_function_of_its_seed():
    values = [0.0, 1.0] * 20
    first = metrics.bootstrap(values, lambda some: sum(some) / len(some), 500, 1)
    assert first == metrics.bootstrap(values, lambda some: sum(some) / len(some), 500, 1)
    assert first[0] == pytest.approx(0.079, abs=0.01) and first[1] < 0.5 < first[2]
