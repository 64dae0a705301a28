"""Operations on the few rows of a decode step, in plain PyTorch: what kernels.triton_rows and kernels.triton_latent have to equal.

Nothing here waits for the device or looks at a value on the host, so a step made of them can be recorded in a CUDA graph, and each row is
computed from itself alone. These versions are for being read and compared with, not for speed: weights are gathered per row. `ops.row_kernels`
chooses. Shape letters: n rows, m model width, i inputs, o outputs, h head, g expert, k chosen, w = n * k rows sorted by expert, e entry
width, c latent width, b blocks of the cache, s slots, t blocks of a table.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Sorted(NamedTuple):
    """(row, choice) pairs in the order of their experts: `source` the row of each pair, `slots` [n k] the place of each pair, `ends` [g]."""

    source: Int[Tensor, " w"]
    slots: Int[Tensor, "n k"]
    ends: Int[Tensor, " g"]


def sort_by_expert(chosen: Int[Tensor, "n k"], experts: int) -> Sorted:
    """Stable order by expert; `ends` counts rows up to and with each expert. Sums of whole numbers alone: exact in any order."""
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    places = torch.arange(len(flat), device=flat.device)
    slots = torch.empty_like(order).scatter_(0, order, places)
    counts = torch.zeros(experts, dtype=torch.int64, device=flat.device).scatter_add_(0, flat, torch.ones_like(flat))
    return Sorted(order // chosen.shape[1], slots.view(chosen.shape), counts.cumsum(0))


def rms_norm(x: Float[Tensor, "n m"], weight: Float[Tensor, " m"], eps: float) -> Float[Tensor, "n m"]:
    """x / sqrt(mean(x^2) + eps) * weight; the mean in FP32, as kernels.reference.rms_norm."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def linear(x: Float[Tensor, "n i"], weight: Float[Tensor, "o i"], dtype: torch.dtype | None = None) -> Float[Tensor, "n o"]:
    """x W^T, sums in FP32, in `dtype` (default: x's)."""
    made = [torch.mv(weight.float(), row) for row in x.float()]
    return torch.stack(made).to(dtype or x.dtype)


def head_linear(x: Float[Tensor, "n h i"], weight: Float[Tensor, "h o i"]) -> Float[Tensor, "n h o"]:
    """Each head's rows times its own matrix, sums in FP32; strides of any kind."""
    made = [torch.bmm(weight.float(), row.unsqueeze(2)).squeeze(2) for row in x.float()]
    return torch.stack(made).to(x.dtype)


def expert_linear(
    x: Float[Tensor, "v i"], weight: Float[Tensor, "g o i"], source: Int[Tensor, " w"], ends: Int[Tensor, " g"]
) -> Float[Tensor, "w o"]:
    """Row w is x[source[w]] times the matrix of the expert to whose rows w belongs, sums in FP32."""
    expert = torch.searchsorted(ends, torch.arange(len(source), device=x.device), right=True)
    picked, given = weight.index_select(0, expert).float(), x.index_select(0, source).float()
    return torch.stack([torch.mv(matrix, row) for matrix, row in zip(picked, given, strict=True)]).to(x.dtype)


def combine(
    x: Float[Tensor, "n m"], rows: Float[Tensor, "w m"], weights: Float[Tensor, "n k"], slots: Int[Tensor, "n k"]
) -> Float[Tensor, "n m"]:
    """x plus the sum over the choices, in their order, of weights[n, k] * rows[slots[n, k]]; in FP32, rounded once."""
    total = torch.zeros_like(x, dtype=torch.float32)
    for choice in range(slots.shape[1]):
        total = total + rows.index_select(0, slots[:, choice]).float() * weights[:, choice : choice + 1].float()
    return (x.float() + total).to(x.dtype)


def latent_attention(
    q: Float[Tensor, "n h e"],
    cache: Float[Tensor, "b s e"],
    tables: Int[Tensor, "n t"],
    positions: Int[Tensor, " n"],
    scale: float,
    latent: int,
) -> Float[Tensor, "n h c"]:
    """softmax(q . entries * scale) times the entries' first `latent` numbers; row n sees entries 0 .. positions[n] of its table's blocks."""
    seen = torch.arange(tables.shape[1] * cache.shape[1], device=q.device) <= positions.unsqueeze(1)
    out = []
    for row, (query, table) in enumerate(zip(q.float(), tables, strict=True)):
        entries = cache[table].flatten(0, 1).float().masked_fill(~seen[row].unsqueeze(1), 0.0)  # NaN of a free slot enters nowhere
        share = (query @ entries.t() * scale).masked_fill(~seen[row], float("-inf")).softmax(dim=-1)
        out.append(share @ entries[:, :latent])
    return torch.stack(out).to(q.dtype)
