"""Advantages by hand: std, unknown rewards, groups without signal."""

import pytest
import torch

from rorqual.errors import ConfigError
from rorqual.posttrain.advantages import group_advantages

NAN = float("nan")


def test_std_form_by_hand():
    """Rewards 1, 0, 0, 0: mean 1/4, sample std 1/2, so 1.5 and three times -0.5."""
    out = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    assert out.values.tolist() == [[1.5, -0.5, -0.5, -0.5]]
    assert out.mean.tolist() == [0.25] and out.std.tolist() == [0.5] and out.signal.tolist() == [True]


def test_without_division():
    assert group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), "none").values.tolist() == [[0.75, -0.25, -0.25, -0.25]]


def test_equal_rewards_have_no_signal_and_exact_zeros():
    """0.1 ten times has a mean that is not 0.1 in FP32; no noise may be blown up to full advantages."""
    out = group_advantages(torch.full((2, 10), 0.1))
    assert not out.signal.any() and torch.equal(out.values, torch.zeros(2, 10))


def test_unknown_rewards_take_no_part():
    out = group_advantages(torch.tensor([[1.0, NAN, 0.0], [NAN, NAN, 1.0], [NAN, NAN, NAN]]))
    half = 0.5**0.5
    assert torch.allclose(out.values, torch.tensor([[half, 0.0, -half], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert out.signal.tolist() == [True, False, False]


def test_scale_is_checked():
    with pytest.raises(ConfigError, match="'batch'"):
        group_advantages(torch.zeros(1, 2), "batch")  # type: ignore[arg-type]
