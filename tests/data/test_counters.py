"""Counter-based randomness: pinned values, uniformity, independence of keys."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rorqual.data.counters import Draws, bits, chosen, key, permutation


def splitmix(state: int) -> int:
    mask = (1 << 64) - 1
    x = (state + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_published_splitmix_values() -> None:
    """The first outputs of SplitMix64 from state 0, as its author's reference prints them."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [int(x) for x in bits(0, np.arange(3))] == expected


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_bits_equal_the_scalar_formula(seed: int, counter: int) -> None:
    state = (seed + counter * 0x9E3779B97F4A7C15) & ((1 << 64) - 1)
    assert int(bits(seed, np.array([counter]))[0]) == splitmix(state)


def test_keys_keep_parts_apart() -> None:
    keys = [key(1, "a"), key(1, "b"), key(11, "a"), key("1", "a"), key(1, "a", 0), key("1a"), key("a", 1)]
    assert len(set(keys)) == len(keys)
    assert key(0, "order", "code", 0) == 0x7FF69C75D538CB2E


def test_permutation_and_share() -> None:
    order = permutation(key(0, "test"), 10_000)
    assert sorted(order) == list(range(10_000))
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.04
    picks = chosen(key(3), np.arange(100_000), 0.1)
    assert abs(picks.mean() - 0.1) < 0.004
    assert not chosen(key(3), np.arange(1000), 0.0).any() and chosen(key(3), np.arange(1000), 1.0).all()


@given(st.integers(1, 10**6), st.integers(0, 1000))
def test_draws_stay_in_range(stop: int, seed: int) -> None:
    draws = Draws("t", seed)
    assert all(0 <= draws.below(stop) < stop for _ in range(5))
    assert all(3 <= Draws("u", seed).between(3, 3 + stop) <= 3 + stop for _ in range(5))


def test_draws_are_the_bits_of_their_key_and_uniform() -> None:
    draws = Draws("t", 1)
    assert [draws.below(1 << 64) for _ in range(4)] == [int(x) for x in bits(key("t", 1), np.arange(4))]
    counts = np.bincount([draws.below(10) for _ in range(20_000)], minlength=10)
    assert counts.min() > 1800 and counts.max() < 2200
