"""The moving average: value against the closed form, interval, swapping in, state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rorqual.train.ema import EMA, interval


def test_interval() -> None:
    assert [interval(d) for d in (0.0, 0.5, 0.9, 0.99, 0.999)] == [1, 1, 1, 10, 105]


def test_value_is_the_bias_corrected_average() -> None:
    """After n updates with decay d the average is sum (1-d) d^(n-j) w_j / (1 - d^n)."""
    ema = EMA({"w": torch.zeros(3)}, 0.9)
    weights = [torch.tensor([float(j), 1.0, -2.0 * j]) for j in range(1, 8)]
    for j, w in enumerate(weights, start=1):
        ema.update(j, {"w": w})
    expected = sum((0.1 * 0.9 ** (7 - j)) * w.double() for j, w in enumerate(weights, start=1)) / (1 - 0.9**7)
    torch.testing.assert_close(ema.average["w"].double(), expected, rtol=1e-6, atol=1e-6)


def test_only_every_kth_step_and_the_first_is_a_copy() -> None:
    ema = EMA({"w": torch.zeros(2)}, 0.99)
    for step in range(1, 10):
        ema.update(step, {"w": torch.full((2,), 100.0)})
    assert ema.updates == 0
    ema.update(10, {"w": torch.full((2,), 3.0)})
    assert ema.updates == 1 and torch.equal(ema.average["w"], torch.full((2,), 3.0))


def test_applied_swaps_and_restores_even_after_an_error() -> None:
    p = {"w": nn.Parameter(torch.ones(2))}
    ema = EMA(p, 0.5)
    ema.update(1, {"w": torch.full((2,), 7.0)})
    with pytest.raises(RuntimeError, match="inside"), ema.applied(p):
        assert torch.equal(p["w"], torch.full((2,), 7.0))
        raise RuntimeError("inside")
    assert torch.equal(p["w"], torch.ones(2))


def test_state_round_trip() -> None:
    first = EMA({"w": torch.zeros(2)}, 0.5)
    first.update(1, {"w": torch.tensor([1.0, 2.0])})
    second = EMA({"w": torch.zeros(2)}, 0.5)
    second.state()["w"].copy_(first.state()["w"])
    second.updates = first.updates
    for ema in (first, second):
        ema.update(2, {"w": torch.tensor([5.0, -1.0])})
    assert torch.equal(first.average["w"], second.average["w"])
