"""Independent float64 versions of the blocks' formulas, written from the report and not from the package."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def turn(x: Tensor, position: int, freqs: list[float]) -> Tensor:
    out = x.clone()
    for k, f in enumerate(freqs):
        a = position * f
        out[2 * k] = x[2 * k] * math.cos(a) - x[2 * k + 1] * math.sin(a)
        out[2 * k + 1] = x[2 * k] * math.sin(a) + x[2 * k + 1] * math.cos(a)
    return out


def mla(x: Tensor, w: dict[str, Tensor], heads: int, nope: int, rope: int, v: int, freqs: list[float], scale: float, eps: float) -> Tensor:
    """One attention layer on [s, m] by loops over heads and positions; `w` by checkpoint name."""
    s = x.shape[0]
    if "q_proj" in w:
        q = x @ w["q_proj"].T
    else:
        q = rms(x @ w["q_a_proj"].T, w["q_a_layernorm"], eps) @ w["q_b_proj"].T
    c = w["kv_a_layernorm"].numel()
    kv_a = x @ w["kv_a_proj_with_mqa"].T
    kv = rms(kv_a[:, :c], w["kv_a_layernorm"], eps) @ w["kv_b_proj"].T
    k_rope = torch.stack([turn(kv_a[t, c:], t, freqs) for t in range(s)])
    heads_out = []
    for h in range(heads):
        qh = q[:, h * (nope + rope) : (h + 1) * (nope + rope)]
        kvh = kv[:, h * (nope + v) : (h + 1) * (nope + v)]
        out = []
        for i in range(s):
            qi = torch.cat([qh[i, :nope], turn(qh[i, nope:], i, freqs)])
            scores = torch.stack([scale * qi @ torch.cat([kvh[j, :nope], k_rope[j]]) for j in range(i + 1)])
            out.append(scores.softmax(0) @ kvh[: i + 1, nope:])
        heads_out.append(torch.stack(out))
    return torch.cat(heads_out, dim=-1) @ w["o_proj"].T
