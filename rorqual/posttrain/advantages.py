"""Advantages of a group of answers to one question (report section 5.2.2, equation 28; DeepSeekMath section 4.1).

    A_i = (r_i - mean(r)) / std(r)          over the group; Dr. GRPO and RLOO-like forms leave the division out

No critic. A reward that could not be judged is NaN: it takes no part in mean and std, and its answer has advantage 0. The std is the
sample's (G - 1), as the field's trainers take it; the papers do not say. A group whose rewards are all equal, or of which fewer than
two are known, has no signal: its advantages are exactly 0, never noise divided by noise. Shape letters: q question, g answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from rorqual.errors import ConfigError

Scale = Literal["std", "none"]
EQUAL_BELOW = 1e-6
"""Std of the group below which its rewards count as equal."""


@dataclass(frozen=True)
class Advantages:
    """`values` are 0 where a reward is unknown and in groups without signal; `signal` says which groups have one."""

    values: Float[Tensor, "q g"]
    signal: Bool[Tensor, " q"]
    mean: Float[Tensor, " q"]
    std: Float[Tensor, " q"]


def group_advantages(rewards: Float[Tensor, "q g"], scale: Scale = "std") -> Advantages:
    """Advantages of every group; FP64 inside, so that equal rewards give exactly equal advantages."""
    if scale not in ("std", "none"):
        raise ConfigError(f"advantage scale ({scale!r}) must be 'std' or 'none'")
    r = rewards.double()
    known = ~r.isnan()
    count = known.sum(dim=1)
    r = r.masked_fill(~known, 0.0)
    mean = r.sum(dim=1) / count.clamp_min(1)
    centred = (r - mean.unsqueeze(1)).masked_fill(~known, 0.0)
    std = (centred.square().sum(dim=1) / (count - 1).clamp_min(1)).sqrt()
    signal = (count > 1) & (std > EQUAL_BELOW)
    values = centred / std.clamp_min(EQUAL_BELOW).unsqueeze(1) if scale == "std" else centred
    values = values.masked_fill(~signal.unsqueeze(1), 0.0)
    return Advantages(values.float(), signal, mean.float(), std.float())
