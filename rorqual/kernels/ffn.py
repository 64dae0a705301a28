"""SwiGLU feed-forward in one pass over few rows at a time, compiled (ffn.cpp): what scoring takes for dense blocks and experts.

No gradients, FP32 on a CPU; where it is not usable the modules do the same. Shape letters: n tokens, m model width, f FFN width, e expert,
k chosen expert.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rorqual.kernels import native, ops


def add_feed_forward(
    out: Float[Tensor, "n m"], x: Float[Tensor, "n m"], gate: Float[Tensor, "f m"], up: Float[Tensor, "f m"], down: Float[Tensor, "m f"]
) -> None:
    """out += down(silu(gate x) * (up x)), in place; all contiguous."""
    _run(x, gate, up, down, None, None, None, 1, out)


def add_experts(
    out: Float[Tensor, "n m"],
    x: Float[Tensor, "n m"],
    gate_up: Float[Tensor, "e g m"],
    down: Float[Tensor, "e m f"],
    indices: Int[Tensor, "n k"],
    weights: Float[Tensor, "n k"],
) -> None:
    """out += sum over a token's chosen experts of weight times the expert's FFN, in place; gate_up holds the gate's rows first (g = 2 f)."""
    source, slots, offs = ops.sort_by_expert(indices, len(down))
    factors = torch.empty(source.numel())
    factors[slots.flatten()] = weights.flatten()
    _run(x, gate_up, gate_up[0, down.shape[2] :], down, source, factors, offs, len(down), out)


def _run(
    x: Tensor, gate: Tensor, up: Tensor, down: Tensor, source: Tensor | None, factors: Tensor | None, offs: Tensor | None, experts: int, out: Tensor
) -> None:  # fmt: skip
    m, f = down.shape[-2:]
    served = native._call("rq_feed_forward", x, gate, up, down, source, factors, offs, experts, out, len(x), m, f)
    native.enough(served, f"a feed-forward of width {f}", "48 tokens")
