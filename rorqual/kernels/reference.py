"""Plain PyTorch versions of every operation in ops.py, with the same signatures. They define what is right.

Shape letters as in ops.py: n tokens, w rows, m model width, f FFN width, e expert, k chosen expert, h head, d head width,
r rotary width, p pair, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Float[Tensor, "... m"], weight: Float[Tensor, " m"], eps: float) -> Float[Tensor, "... m"]:
    """x / sqrt(mean(x^2) + eps) * weight; statistics in FP32, result in x's type."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def swiglu(gate: Float[Tensor, "... f"], up: Float[Tensor, "... f"]) -> Float[Tensor, "... f"]:
    """silu(gate) * up."""
    return F.silu(gate) * up


def swiglu_packed(hidden: Float[Tensor, "w g"]) -> Float[Tensor, "w f"]:
    """silu of the first half times the second half."""
    gate, up = hidden.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu_packed_backward(d_out: Float[Tensor, "w f"], hidden: Float[Tensor, "w g"]) -> tuple[Float[Tensor, "w g"], Float[Tensor, "w f"]]:
    """(gradient of `hidden`, the forward's result computed anew)."""
    gate, up = hidden.chunk(2, dim=-1)
    sigma = torch.sigmoid(gate)
    silu = gate * sigma
    return torch.cat([d_out * up * sigma * (1 + gate * (1 - sigma)), d_out * silu], dim=-1), silu * up


def rope(x: Float[Tensor, "b s h r"], cos: Float[Tensor, "b s p"], sin: Float[Tensor, "b s p"]) -> Float[Tensor, "b s h r"]:
    """Turns adjacent pairs: (x0, x1) -> (x0 cos - x1 sin, x0 sin + x1 cos); computed in FP32."""
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2).to(x.dtype)


def mla_heads(
    q: Float[Tensor, "b s h d"],
    kv: Float[Tensor, "b s w"],
    k_rope: Float[Tensor, "b s r"],
    cos: Float[Tensor, "b s p"],
    sin: Float[Tensor, "b s p"],
) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s d"], Float[Tensor, "b h s c"]]:
    """Rotated queries and keys, and values, head-major, from unrotated q (nope first, rope last), per-head [k_nope ; v] and the
    unrotated key that all heads share."""
    b, s, h, d = q.shape
    r = k_rope.shape[-1]
    q_nope, q_rope = q.split([d - r, r], dim=-1)
    k_nope, v = kv.view(b, s, h, kv.shape[-1] // h).split([d - r, kv.shape[-1] // h - (d - r)], dim=-1)
    k_rope = rope(k_rope.unsqueeze(2), cos, sin).expand(-1, -1, h, -1)
    q, k = torch.cat([q_nope, rope(q_rope, cos, sin)], dim=-1), torch.cat([k_nope, k_rope], dim=-1)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def attention(
    q: Float[Tensor, "b h s d"], k: Float[Tensor, "b h t d"], v: Float[Tensor, "b h t c"], scale: float, mask: Bool[Tensor, "b s t"] | None
) -> Float[Tensor, "b s o"]:
    """softmax(q k^T scale) v over the allowed keys, heads side by side; mask None is causal with s = t.

    V is padded to the width of Q and K: with unequal widths the CPU falls back to the slow path.
    """
    width = v.shape[-1]
    if width < q.shape[-1]:
        v = F.pad(v, (0, q.shape[-1] - width))
    out = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask.unsqueeze(1), is_causal=mask is None, scale=scale)
    return out[..., :width].transpose(1, 2).flatten(2)


def top_k(x: Float[Tensor, "... e"], k: int) -> tuple[Float[Tensor, "... k"], Int[Tensor, "... k"]]:
    """The k largest of the last dimension, largest first."""
    return torch.topk(x, k, dim=-1)


def sort_by_expert(indices: Int[Tensor, "n k"], num_experts: int) -> tuple[Int[Tensor, " w"], Int[Tensor, "n k"], Int[Tensor, " e"]]:
    """(token of each row, row of each (token, choice), end of each expert's rows), rows stable-sorted by expert."""
    flat = indices.reshape(-1)
    order = torch.argsort(flat, stable=True)
    slots = torch.empty_like(order)
    slots[order] = torch.arange(flat.numel(), device=flat.device)
    offs = torch.bincount(flat, minlength=num_experts).cumsum(0).to(torch.int32)
    return order // indices.shape[1], slots.view(indices.shape), offs


def gather_rows(x: Float[Tensor, "n m"], source: Int[Tensor, " w"], slots: Int[Tensor, "n k"]) -> Float[Tensor, "w m"]:
    """Row w is a copy of token source[w]; `slots` is the inverse, used by the gradient."""
    return x.index_select(0, source)


def combine_rows(
    rows: Float[Tensor, "w m"], weights: Float[Tensor, "n k"], slots: Int[Tensor, "n k"], source: Int[Tensor, " w"]
) -> Float[Tensor, "n m"]:
    """Sum over j of weights[t, j] * rows[slots[t, j]]."""
    return (rows.index_select(0, slots.reshape(-1)).view(*slots.shape, rows.shape[-1]) * weights.to(rows.dtype).unsqueeze(-1)).sum(dim=1)


def linear_cross_entropy(
    hidden: Float[Tensor, "n m"], weight: Float[Tensor, "v m"], targets: Int[Tensor, " n"], scale: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(scale * sum over targets >= 0 of -log softmax(hidden W^T)[target], the same sum unscaled and without gradient), in FP32."""
    nll = F.cross_entropy(F.linear(hidden.float(), weight.float()), targets, ignore_index=-100, reduction="sum")
    return nll * scale, nll.detach()


def adamw(
    parameter: Float[Tensor, "..."],
    grad: Float[Tensor, "..."],
    exp_avg: Float[Tensor, "..."],
    exp_avg_sq: Float[Tensor, "..."],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float,
) -> None:
    """One AdamW update in place, the gradient multiplied by grad_scale first; moments may be BF16, arithmetic is FP32."""
    grad = grad.float() * grad_scale
    first = exp_avg.float().lerp(grad, 1 - beta1)
    second = (exp_avg_sq.float() * beta2).addcmul_(grad, grad, value=1 - beta2)
    exp_avg.copy_(first)
    exp_avg_sq.copy_(second)
    denominator = second.sqrt_().div_((1 - beta2**step) ** 0.5).add_(eps)
    parameter.mul_(1 - lr * weight_decay).addcdiv_(first, denominator, value=-lr / (1 - beta1**step))


def grouped_fprop(x: Float[Tensor, "w i"], weight: Float[Tensor, "e o i"], offs: Int[Tensor, " e"]) -> Float[Tensor, "w o"]:
    """Rows of expert e times weight[e]^T; every output row is written."""
    out = x.new_empty(x.shape[0], weight.shape[1])
    start = 0
    for expert, end in zip(weight.unbind(0), offs.tolist(), strict=True):
        if end > start:
            torch.mm(x[start:end], expert.t(), out=out[start:end])
        start = end
    return out


def grouped_dgrad(dy: Float[Tensor, "w o"], weight: Float[Tensor, "e o i"], offs: Int[Tensor, " e"]) -> Float[Tensor, "w i"]:
    """Rows of expert e times weight[e]."""
    out = dy.new_empty(dy.shape[0], weight.shape[2])
    start = 0
    for expert, end in zip(weight.unbind(0), offs.tolist(), strict=True):
        if end > start:
            torch.mm(dy[start:end], expert, out=out[start:end])
        start = end
    return out


def grouped_wgrad(
    dy: Float[Tensor, "w o"], x: Float[Tensor, "w i"], offs: Int[Tensor, " e"], weight: Float[Tensor, "e o i"]
) -> Float[Tensor, "e o i"]:
    """dy^T x over the rows of each expert; exactly zero for experts without rows."""
    out = torch.empty_like(weight)
    start = 0
    for grad, end in zip(out.unbind(0), offs.tolist(), strict=True):
        if end > start:
            torch.mm(dy[start:end].t(), x[start:end], out=grad)
        else:
            grad.zero_()
        start = end
    return out


def fp8_dequantize(
    codes: Shaped[Tensor, "o i"],
    scales: Float[Tensor, "p q"],
    block: tuple[int, int],
    first_row: int,
    dtype: torch.dtype,
    out: Float[Tensor, "o i"],
) -> None:
    """out = value of each E4M3 code times the scale of its block, in FP32, rounded once to `dtype`; see fp8.dequantize."""
    column = torch.arange(codes.shape[1], device=codes.device) // block[1]
    for begin, end in _row_blocks(codes.shape[0], block[0], first_row):
        scale = scales[(first_row + begin) // block[0]][column]
        out[begin:end] = (codes[begin:end].view(torch.float8_e4m3fn).float() * scale).to(dtype)


def fp8_quantize(
    values: Float[Tensor, "o i"], block: tuple[int, int], power_of_two: bool, codes: Float[Tensor, "o i"], scales: Float[Tensor, "p q"]
) -> tuple[int, int] | None:
    """Fills codes and scales; (row block, column block) of the first block that is not finite, or None. See fp8.quantize."""
    for index, (begin, end) in enumerate(_row_blocks(values.shape[0], block[0], 0)):
        part = values[begin:end].float()
        amax = F.pad(part.abs(), (0, -part.shape[1] % block[1])).view(end - begin, -1, block[1]).amax(dim=(0, 2))
        if not amax.isfinite().all():
            return index, int(torch.nonzero(~amax.isfinite())[0])
        scale = amax.clamp(min=1e-4) / 448.0
        if power_of_two:
            mantissa, exponent = torch.frexp(scale)
            scale = torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).int())
        scales[index] = scale
        codes[begin:end] = (part / scale.repeat_interleave(block[1])[: part.shape[1]]).clamp(-448.0, 448.0).to(codes.dtype)
    return None


def _row_blocks(rows: int, height: int, first_row: int) -> Iterator[tuple[int, int]]:
    """[begin, end) of the rows that share a row of scales."""
    begin = 0
    while begin < rows:
        end = min(begin + height - (first_row + begin) % height, rows)
        yield begin, end
        begin = end
