"""Acceptance as published figures count it, min(1, p/q) with residual resampling (report section 5.4.3), beside the engine's own rule.

The engine commits the target's own samples and accepts a draft that equals them (inference.engine); draft and target share their noise. For
target p and draft q that accepts sum_i 1 / sum_j max(p_j / p_i, q_j / q_i) of the drafts, the p/q rule sum_i min(p_i, q_i), which is at least
as many. Shape letter: v vocabulary.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def acceptance_rate(p: Float[Tensor, " v"], q: Float[Tensor, " v"]) -> float:
    """Share of drafts from q that the p/q rule accepts for target p: sum_v min(p_v, q_v)."""
    return float(torch.minimum(p, q).sum())


def residual(p: Float[Tensor, " v"], q: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
    """What a rejected draft is replaced from: max(p - q, 0), normalised; p itself where p equals q and nothing is rejected."""
    rest = (p - q).clamp_min(0)
    total = rest.sum()
    return rest / total if total > 0 else p


def accept_or_resample(p: Float[Tensor, " v"], q: Float[Tensor, " v"], draft: int, accept_u: float, residual_u: float) -> tuple[bool, int]:
    """(accepted, token): the draft with probability min(1, p/q), else a token of the residual; the token is distributed as p.

    `accept_u` and `residual_u` are independent uniform numbers of [0, 1). Probabilities, not logits: temperature 0 is argmax
    before this rule, never a division by it (F18).
    """
    if accept_u * float(q[draft]) < float(p[draft]):
        return True, draft
    cumulative = residual(p, q).double().cumsum(dim=0)
    return False, int(torch.searchsorted(cumulative, residual_u * float(cumulative[-1]), right=True).clamp_max(len(p) - 1))
