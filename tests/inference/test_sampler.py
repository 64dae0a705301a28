"""Sampling: exact filters, noise as a function of its key, frequencies of the distribution asked for."""

from __future__ import annotations

import math

import pytest
import torch

from rorqual.errors import ConfigError, NonFiniteError
from rorqual.inference.sampler import SamplingParams, key, sample, scores, uniform

SAMPLED = SamplingParams(temperature=1.0)


def test_uniform_is_splitmix64_over_counters():
    """Against the same function on Python's unbounded integers: torch's 64-bit products wrap, its shift repeats the sign."""
    mask, found = (1 << 64) - 1, uniform(torch.tensor([-7, 12345678901234567]), 5)
    for row, start in enumerate((-7, 12345678901234567)):
        for column in range(5):
            x = (start + (column + 1) * 0x9E3779B97F4A7C15) & mask
            x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
            x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
            x ^= x >> 31
            assert found[row, column].item() == ((x >> 11) + 0.5) * 2.0**-53


def test_keys_differ_in_every_part_and_stay_the_same():
    parts = [(s, c, p, w) for s in (0, 1, -1, 2**70) for c in (0, 1) for p in (0, 1, 11) for w in ("sample", "accept")]
    assert len({key(*part) for part in parts}) == len(parts)
    assert key(0, 0, 0, "sample") == -8103492300962252431
    assert -(2**63) <= key(5, 6, 7, "x") < 2**63


def test_draws_follow_the_distribution():
    """60,000 draws; chi-square with 5 degrees of freedom stays under its 99.9% point."""
    p = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
    count, tokens = 60_000, []
    for first in range(0, count, 20_000):
        rows = range(first, first + 20_000)
        tokens.append(sample(p.log().expand(20_000, -1), [SAMPLED] * 20_000, [0] * 20_000, list(rows)))
    seen = torch.bincount(torch.cat(tokens), minlength=6).double()
    assert ((seen - count * p) ** 2 / (count * p)).sum() < 20.5
    assert (seen / count - p).abs().max() < 0.005


def test_temperature_top_k_and_top_p_in_this_order():
    p = torch.tensor([[0.05, 0.5, 0.2, 0.25]])

    def kept(**settings) -> list[float]:
        return [round(value, 4) for value in scores(p.log(), [SamplingParams(**settings)]).softmax(-1)[0].tolist()]

    assert kept() == [0.05, 0.5, 0.2, 0.25]
    assert kept(top_k=2) == [0.0, 0.6667, 0.0, 0.3333]
    assert kept(top_p=0.5) == [0.0, 1.0, 0.0, 0.0]
    assert kept(top_p=0.51) == [0.0, 0.6667, 0.0, 0.3333]
    assert kept(top_p=1e-9) == [0.0, 1.0, 0.0, 0.0]
    assert kept(top_k=2, top_p=0.66) == [0.0, 1.0, 0.0, 0.0]  # 0.5 of 0.75 is 0.667 and reaches it alone
    assert kept(top_k=99) == kept()
    squares = [0.0025, 0.25, 0.04, 0.0625]
    assert kept(temperature=0.5) == [round(value / sum(squares), 4) for value in squares]


def test_equal_scores_are_ranked_by_id():
    tied = torch.zeros(1, 5)
    assert scores(tied, [SamplingParams(top_k=2)]).isfinite().tolist() == [[True, True, False, False, False]]
    assert sample(tied, [SamplingParams(temperature=0)], [0], [0]).tolist() == [0]


def test_rows_with_their_own_settings_do_not_touch_each_other():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    each = [SamplingParams(temperature=0), SamplingParams(top_k=3, seed=4), SamplingParams(top_p=0.3), SamplingParams(temperature=2.0)]
    together = sample(logits, each, [0, 1, 2, 3], [9, 8, 7, 6]).tolist()
    alone = [sample(logits[i : i + 1], [each[i]], [i], [9 - i]).item() for i in range(4)]
    assert together == alone and together[0] == logits[0].argmax().item()


@pytest.mark.parametrize("temperature", [0.0, 9e-6])
def test_a_temperature_below_1e_5_is_greedy(temperature):
    logits = torch.randn(8, 30, generator=torch.Generator().manual_seed(1))
    cold = SamplingParams(temperature=temperature, top_p=0.9, top_k=5)
    assert sample(logits, [cold] * 8, [0] * 8, list(range(8))).tolist() == logits.argmax(-1).tolist()
    mixed = sample(logits, [cold] * 7 + [SAMPLED], [0] * 8, list(range(8))).tolist()
    assert mixed[:7] == logits[:7].argmax(-1).tolist()


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0), SAMPLED, SamplingParams(temperature=5.0, top_k=40), SamplingParams(top_p=0.99)]
)
def test_ids_from_the_limit_up_are_never_drawn(params):
    """F22: the vocabulary is padded, and the padding is what the model likes best."""
    logits = torch.zeros(500, 64)
    logits[:, 60:] = 50.0
    tokens = sample(logits, [params] * 500, [0] * 500, list(range(500)), vocab_limit=60)
    assert tokens.max() < 60
    masked = scores(logits[:1], [params], vocab_limit=60)[0]
    assert masked[60:].isinf().all() and masked[:60].isfinite().any()


def test_the_limit_does_not_change_the_noise_of_what_is_left():
    logits = torch.randn(50, 64, generator=torch.Generator().manual_seed(2))
    logits[:, 60:] = -math.inf
    free = sample(logits, [SAMPLED] * 50, [0] * 50, list(range(50)))
    assert free.tolist() == sample(logits, [SAMPLED] * 50, [0] * 50, list(range(50)), vocab_limit=60).tolist()


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SAMPLED])
def test_logits_with_nan_are_an_error(params):
    logits = torch.zeros(2, 4)
    logits[1, 2] = math.nan
    with pytest.raises(NonFiniteError, match="row 1"):
        sample(logits, [params] * 2, [0, 0], [0, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, r"temperature \(-0.1\)"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, r"top_p \(0.0\)"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, r"top_k \(-1\)"),
        ({"top_k": 1.5}, "top_k"),
        ({"max_tokens": 0}, r"max_tokens \(0\)"),
        ({"n": 0}, r"n \(0\)"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SamplingParams(**settings)
