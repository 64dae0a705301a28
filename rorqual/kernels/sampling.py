"""Drawing tokens and reading their log-probabilities in compiled code; inference.sampler is the reference of both.

Every id's noise is looked at, but only the few that could win take logarithms (sampling.cpp): about a hundredth of the time. The noise has
the bits of the reference's, so the same token wins. Shape letters: b rows, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rorqual.kernels import native


def usable(logits: Tensor) -> bool:
    """Whether these logits can go through the compiled code: FP32 in memory, rows dense."""
    return (
        logits.dtype == torch.float32 and logits.dim() == 2 and logits.stride(1) == 1 and logits.shape[1] > 0 and native.reachable(logits)
    )


def draw(logits: Float[Tensor, "b v"], keys: Sequence[int], temperatures: Sequence[float], width: int) -> Int[Tensor, " b"]:
    """One of the first `width` ids per row; a temperature of 0 takes the most likely. -1 where a row holds NaN."""
    tokens = torch.empty(len(logits), dtype=torch.int64)
    native._call(
        "rq_draw", logits, len(logits), logits.stride(0), width, torch.tensor(keys, dtype=torch.int64), torch.tensor(temperatures, dtype=torch.float64), tokens
    )  # fmt: skip
    return tokens


def token_logprobs(logits: Float[Tensor, "b v"], tokens: Sequence[int], width: int) -> tuple[list[float], list[int]]:
    """(log-probability, rank from 1) of one id per row, over the first `width` ids."""
    values, ranks = torch.empty(len(logits), dtype=torch.float64), torch.empty(len(logits), dtype=torch.int64)
    at = torch.tensor(tokens, dtype=torch.int64)
    native._call("rq_token_logprobs", logits, len(logits), logits.stride(0), width, at, values, ranks)
    return values.tolist(), ranks.tolist()
