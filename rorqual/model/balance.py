"""Load balancing: counts, the bias rule, the complementary sequence-wise loss (report section 2.1.2, equations 17-20).

Counts are integers over real tokens, handed out by the blocks and summed by whoever runs the optimiser step; the rule is
then applied once per step. Shape letters: n tokens, e expert, k chosen expert, q sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rorqual.kernels import ops


@dataclass(frozen=True)
class SequenceWeights:
    """Which sequence each token belongs to (-1: padding, counted nowhere) and each sequence's share T_s / N of the step's targets.

    `rows` is True for the plain case, every row of the batch one sequence of real tokens.
    """

    ids: Int[Tensor, "b s"]
    weights: Float[Tensor, " q"]
    rows: bool


def load_counts(indices: Int[Tensor, "n k"], num_experts: int, real: Bool[Tensor, " n"] | None) -> Int[Tensor, " e"]:
    """Tokens routed to each expert, as int64; padding is not counted (field case F13)."""
    return torch.bincount((indices if real is None else indices[real]).reshape(-1), minlength=num_experts)


def update_bias(bias: Float[Tensor, " e"], load: Int[Tensor, " e"], speed: float) -> None:
    """b_i += speed sign(mean load - load_i), in place: the report's rule, once per optimiser step on the whole batch's load."""
    total = load.sum()
    bias.add_(torch.sign(total - load * load.numel()).to(bias.dtype), alpha=speed)


def max_violation(load: Int[Tensor, "... e"]) -> Float[Tensor, "..."]:
    """MaxVio = (max load - mean load) / mean load; 0 where nothing was routed."""
    mean = load.double().mean(dim=-1)
    return torch.where(mean > 0, load.amax(dim=-1) / mean.clamp_min(1e-300) - 1, torch.zeros_like(mean))


def sequence_balance_loss(scores: Float[Tensor, "n e"], k: int, sequences: SequenceWeights) -> Float[Tensor, ""]:
    """sum over sequences of (T_s / N) sum_i f_i P_i, to be multiplied by alpha.

    f_i = E / (K T) x (tokens of the sequence that have i among the top K of s), without gradient; P_i = mean over the
    sequence of s_i / sum_j s_j, over *all* experts (trap 12). As equation 18 is printed, the indicator takes plain s.
    T counts the real tokens of the sequence; sequences that have none contribute nothing.
    """
    num_experts = scores.shape[1]
    chosen = ops.top_k(scores.detach(), k)[1]
    share = scores / scores.sum(dim=-1, keepdim=True)
    hits = torch.zeros_like(scores).scatter_(1, chosen, 1.0)
    if sequences.rows:
        rows = (*sequences.ids.shape, num_experts)
        share, hits = share.view(rows).mean(dim=1), hits.view(rows).mean(dim=1)
    else:
        ids = sequences.ids.reshape(-1)
        real = ids >= 0
        ids, count = ids[real], sequences.weights.numel()
        length = torch.bincount(ids, minlength=count).clamp_min(1).unsqueeze(1)
        share = scores.new_zeros(count, num_experts).index_add(0, ids, share[real]) / length
        hits = scores.new_zeros(count, num_experts).index_add(0, ids, hits[real]) / length
    return (sequences.weights.unsqueeze(1) * hits * share).sum() * (num_experts / k)
