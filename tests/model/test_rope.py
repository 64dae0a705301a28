"""Frequencies, softmax scale and the pair convention, against values computed by hand from the formulas."""

from __future__ import annotations

import math

import pytest
import torch

from rorqual.config import RopeScaling
from rorqual.model.rope import apply_rope, rope_parameters, rope_tables
from rorqual.presets import preset
from tests.tiny import t0


def test_unscaled_frequencies_and_scale() -> None:
    rope = rope_parameters(t0(rope_scaling=None))
    assert rope.inv_freq == pytest.approx([1, 0.1, 0.01, 0.001])
    assert rope.softmax_scale == pytest.approx(0.204124, abs=1e-6)
    assert rope.amplitude == 1.0


def test_yarn_on_the_tiny_configuration() -> None:
    rope = rope_parameters(t0())
    assert rope.inv_freq == pytest.approx([1, 0.0625, 0.0025, 0.00025])
    assert rope.softmax_scale == pytest.approx(0.264642, abs=1e-6)
    assert rope.amplitude == 1.0


def test_yarn_at_full_size() -> None:
    """Pairs 0..10 are unchanged, 23..31 divided by 40; the softmax scale takes mscale squared (192^-0.5 x 1.368888^2)."""
    rope = rope_parameters(preset("v3_671b"))
    plain = [10000 ** (-2 * k / 64) for k in range(32)]
    assert rope.inv_freq[:11] == pytest.approx(plain[:11])
    assert rope.inv_freq[23:] == pytest.approx([f / 40 for f in plain[23:]])
    assert all(f / 40 < g < f for f, g in zip(plain[11:23], rope.inv_freq[11:23], strict=True))
    assert rope.softmax_scale == pytest.approx(0.1352338, abs=1e-7)
    assert rope_parameters(preset("v3_671b").with_(rope_scaling=None)).softmax_scale == pytest.approx(0.0721688, abs=1e-7)


def test_v2_temperature() -> None:
    scale = rope_parameters(preset("v2_lite_16b")).softmax_scale
    assert scale == pytest.approx(192**-0.5 * (0.0707 * math.log(40) + 1) ** 2)


def test_both_ramp_ends_at_pair_zero() -> None:
    rope = rope_parameters(t0(rope_scaling=RopeScaling(factor=4.0, original_max_position_embeddings=4, mscale_all_dim=1.0)))
    assert all(math.isfinite(f) and f > 0 for f in rope.inv_freq)


def test_amplitude_without_mscale_all_dim() -> None:
    rope = rope_parameters(t0(rope_scaling=RopeScaling(factor=4.0, original_max_position_embeddings=64)))
    assert rope.amplitude == pytest.approx(0.1 * math.log(4) + 1)
    assert rope.softmax_scale == pytest.approx(24**-0.5)


def test_pairs_are_adjacent() -> None:
    cos, sin = rope_tables(rope_parameters(t0()), torch.tensor([[1]]))
    x = torch.zeros(1, 1, 1, 8)
    x[..., 0] = 1.0
    turned = apply_rope(x, cos, sin).flatten()
    assert turned[:2].tolist() == pytest.approx([0.540302, 0.841471], abs=1e-6)
    assert turned[2:].abs().max() == 0


def test_scores_depend_on_distance_only() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    rope = rope_parameters(t0())

    def score(at_q: int, at_k: int) -> float:
        turned = [apply_rope(x.float(), *rope_tables(rope, torch.tensor([[at]]))) for x, at in ((q, at_q), (k, at_k))]
        return float((turned[0] * turned[1]).sum())

    assert score(9, 2) == pytest.approx(score(14, 7), abs=1e-5)
    assert score(9, 2) != pytest.approx(score(9, 3), abs=1e-3)
