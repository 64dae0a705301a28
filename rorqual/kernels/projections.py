"""The products before and behind MLA's attention in one pass over few tokens at a time, compiled (projections.cpp): for scoring.

No gradients, FP32 on a CPU; where it is not usable the modules do the same. Shape letters: n tokens, m model width, a width of the query
latent, c of the key latent, r rotary width, q outputs of the queries, w of keys and values, k inputs, o outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rorqual.kernels import native


@dataclass(frozen=True)
class InputWeights:
    """Weights of a block up to its attention, contiguous. q_a and q_norm are None without query compression."""

    input_norm: Float[Tensor, " m"]
    q_a: Float[Tensor, "a m"] | None
    q_norm: Float[Tensor, " a"] | None
    q_b: Float[Tensor, "q a"]
    kv_a: Float[Tensor, "c_r m"]
    kv_norm: Float[Tensor, " c"]
    kv_b: Float[Tensor, "w c"]


def attention_inputs(
    x: Float[Tensor, "n m"], weights: InputWeights, eps: float
) -> tuple[Float[Tensor, "n q"], Float[Tensor, "n w"], Float[Tensor, "n r"]]:
    """(queries, keys and values, shared key), none of them rotated, of the residual stream x: what `kernels.tree` takes."""
    (n, m), (width, c) = x.shape, weights.kv_b.shape
    r, a, asked = len(weights.kv_a) - c, 0 if weights.q_a is None else len(weights.q_a), len(weights.q_b)
    q, kv, k_rope = torch.empty(n, asked), torch.empty(n, width), torch.empty(n, r)
    given = weights.input_norm, weights.q_a, weights.q_norm, weights.q_b, weights.kv_a, weights.kv_norm, weights.kv_b
    served = native._call("rq_attention_inputs", x.contiguous(), *given, eps, q, kv, k_rope, n, m, a, c, r, asked, width)
    native.enough(served, "the projections of attention", "48 tokens")
    return q, kv, k_rope


def add_product(out: Float[Tensor, "n o"], x: Float[Tensor, "n k"], weight: Float[Tensor, "o k"]) -> None:
    """out += x weight^T, in place; all contiguous."""
    native.enough(native._call("rq_add_product", x, weight, out, len(x), *weight.shape[::-1]), "a projection", "48 tokens")
