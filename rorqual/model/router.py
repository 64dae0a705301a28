"""The router: which experts a token goes to, and with what weight (report section 2.1.2, equations 12-16).

Two scores are kept apart (traps 1 and 16 of the specification): s + b chooses, s weighs. Scores are FP32. The bias is a
buffer, not a parameter: it gets no gradient and no weight decay, and balance.update_bias moves it once per optimiser step.
Shape letters: n tokens, e expert, k chosen expert, g group, m model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rorqual.config import ModelConfig
from rorqual.kernels import ops


@dataclass(frozen=True)
class Routing:
    """Chosen experts, their gate values (with gradient), and the scores of all experts (with gradient).

    `own` is what the router itself would have chosen: `indices`, unless experts were given to it.
    """

    indices: Int[Tensor, "n k"]
    weights: Float[Tensor, "n k"]
    scores: Float[Tensor, "n e"]
    own: Int[Tensor, "n k"]


def choose(scores: Float[Tensor, "n e"], bias: Float[Tensor, " e"] | None, config: ModelConfig) -> Int[Tensor, "n k"]:
    """Top-K of s + b, restricted to the topk_group best groups where the method is group-limited.

    V3 (`noaux_tc`): a group's score is the sum of its two largest s + b. V2 (`group_limited_greedy`): the largest s.
    Groups left out are masked with -inf, never 0, which could win against a negative s + b.
    """
    choice = scores if bias is None else scores + bias
    if config.topk_method != "greedy" and config.n_group > 1:
        grouped = choice.view(choice.shape[0], config.n_group, choice.shape[1] // config.n_group)
        counted = min(2, grouped.shape[-1]) if config.topk_method == "noaux_tc" else 1
        kept = ops.top_k(ops.top_k(grouped, counted)[0].sum(-1), config.topk_group)[1]
        out = torch.ones(grouped.shape[:2], dtype=torch.bool, device=choice.device).scatter_(1, kept, False)
        choice = grouped.masked_fill(out.unsqueeze(-1), float("-inf")).view_as(choice)
    return ops.top_k(choice, config.num_experts_per_tok)[1]


def route(
    logits: Float[Tensor, "n e"], bias: Float[Tensor, " e"] | None, config: ModelConfig, given: Int[Tensor, "n k"] | None = None
) -> Routing:
    """s = sigmoid or softmax of the logits; gates are s of the chosen, normalised if configured, then scaled, always.

    `given` experts take the place of the router's choice (routing replay), except in rows that begin with -1. Their gates are
    gathered from the live scores of all experts, so that the gradient reaches the router (field case F36).
    """
    scores = logits.float().sigmoid() if config.scoring_func == "sigmoid" else logits.float().softmax(dim=-1)
    own = choose(scores.detach(), bias, config)
    indices = own if given is None else torch.where(given[:, :1] < 0, own, given)
    weights = scores.gather(1, indices)
    if config.norm_topk_prob:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return Routing(indices, weights * config.routed_scaling_factor, scores, own)


class Router(nn.Module):
    """The `gate` of a MoE layer. Weight and bias stay FP32 through every cast of the model (field cases F07, F15)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size, dtype=torch.float32))
        self.e_score_correction_bias: Tensor | None
        has_bias = config.topk_method == "noaux_tc"
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts, dtype=torch.float32) if has_bias else None)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        """Module.to(dtype) and friends move this module, but never cast it."""

        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move_only, recurse)

    def forward(self, x: Float[Tensor, "n m"], given: Int[Tensor, "n k"] | None = None) -> Routing:
        with torch.autocast(x.device.type, enabled=False):
            return route(torch.nn.functional.linear(x.float(), self.weight), self.e_score_correction_bias, self.config, given)
