"""Rotary position embedding with YaRN (report sections 2.1.1 and 4.3).

One function gives frequencies, table amplitude and softmax scale for every path: prefill, absorbed decode, MTP, training.
Pairs are adjacent elements, as in the official weights (trap 4 of the specification); mscale enters the softmax scale
squared (trap 5). Shape letters: b batch, s position, h head, r rotary width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rorqual.config import ModelConfig
from rorqual.kernels import ops


@dataclass(frozen=True)
class RopeParameters:
    """What a configuration's rotary fields come to: one frequency per pair, factor on cos and sin, factor on the scores."""

    inv_freq: tuple[float, ...]
    amplitude: float
    softmax_scale: float


def yarn_mscale(factor: float, mscale: float) -> float:
    """The attention temperature 0.1 mscale ln(factor) + 1 (report section 4.3)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_parameters(config: ModelConfig) -> RopeParameters:
    """Frequencies theta^(-2k/r), blended with those divided by `factor` along YaRN's ramp; scale (d_h + d_h^R)^-0.5 mscale^2."""
    width, theta, scaling = config.qk_rope_head_dim, config.rope_theta, config.rope_scaling
    plain = [theta ** (-2 * k / width) for k in range(width // 2)]
    scale = config.qk_head_dim**-0.5
    if scaling is None:
        return RopeParameters(tuple(plain), 1.0, scale)

    def pair_turning(turns: float) -> float:
        """The (fractional) pair that turns `turns` times over the original length."""
        return width * math.log(scaling.original_max_position_embeddings / (2 * math.pi * turns)) / (2 * math.log(theta))

    low = max(math.floor(pair_turning(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_turning(scaling.beta_slow)), width - 1)
    high = max(high, 0)
    span = high - low if high > low else 0.001  # both ends clamped to the same pair: a step, no division by zero
    ramp = [min(max((k - low) / span, 0.0), 1.0) for k in range(width // 2)]
    inv_freq = tuple((1 - share) * f + share * f / scaling.factor for share, f in zip(ramp, plain, strict=True))
    if scaling.mscale and scaling.mscale_all_dim:
        amplitude = yarn_mscale(scaling.factor, scaling.mscale) / yarn_mscale(scaling.factor, scaling.mscale_all_dim)
    else:
        amplitude = yarn_mscale(scaling.factor, 1.0)
    if scaling.mscale_all_dim:
        scale *= yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2
    return RopeParameters(inv_freq, amplitude, scale)


def rope_tables(rope: RopeParameters, positions: Int[Tensor, "b s"]) -> tuple[Float[Tensor, "b s p"], Float[Tensor, "b s p"]]:
    """cos and sin of position times frequency for each pair p, in FP32."""
    inv_freq = torch.tensor(rope.inv_freq, dtype=torch.float32, device=positions.device)
    angle = positions.to(torch.float32).unsqueeze(-1) * inv_freq
    return angle.cos() * rope.amplitude, angle.sin() * rope.amplitude


def apply_rope(x: Float[Tensor, "b s h r"], cos: Float[Tensor, "b s p"], sin: Float[Tensor, "b s p"]) -> Float[Tensor, "b s h r"]:
    """Turns each adjacent pair (x_2k, x_2k+1) by its angle."""
    return ops.rope(x, cos, sin)
