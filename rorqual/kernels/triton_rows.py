"""The operations of kernels.rows as Triton kernels: one row's sums have one order, whatever rows are beside it.

Every product runs in tiles of 16 rows over the inputs in steps of one width, without sharing the inputs out among programs, so the number of
rows of a call, and the rows themselves, do not enter a row's sums; libraries choose another kernel for another number of rows. FP32 products
are IEEE FP32 (no TF32). Tensors of two types (the router's FP32 weights, BF16 states) are multiplied in FP32.

Checked in Triton's interpreter on a CPU (tests/kernels/triton_cases.py), and compiled to machine code (test_triton_latent.py); never run on a
device. The widths of the tiles are estimates.
Importing this file needs the package triton. Shape letters as in kernels.rows.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,import-untyped]
import triton.language as tl  # type: ignore[import-not-found,import-untyped]
from jaxtyping import Float, Int
from torch import Tensor

from rorqual.kernels.rows import Sorted, sort_by_expert
from rorqual.kernels.triton_latent import latent_attention, widens

__all__ = ["Sorted", "combine", "expert_linear", "head_linear", "latent_attention", "linear", "rms_norm", "sort_by_expert"]

_ROWS = 16  # of a tile: the smallest that tensor cores take
_OUTPUTS = 32


@triton.jit(do_not_specialize_on_alignment=["x", "weight", "out"])  # the lanes' shares of a row do not follow where it lies
def _norm(x, weight, out, width, eps, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDTH)
    real = at < width
    value = tl.load(x + row * width + at, mask=real, other=0.0)
    wide = value.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    scaled = (wide * factor).to(value.dtype).to(tl.float32) * tl.load(weight + at, mask=real, other=0.0).to(tl.float32)
    tl.store(out + row * width + at, scaled.to(value.dtype), mask=real)


@triton.jit
def _tile(  # type: ignore[no-untyped-def]
    x, real_row, weight, real_output, inputs, x_input, weight_input, WIDEN: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr
):  # fmt: skip
    """Products of the rows that `x` points at with the outputs that `weight` points at; the inputs in their order."""
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for start in range(0, inputs, INPUTS):
        at = start + tl.arange(0, INPUTS)
        real = at < inputs
        left = tl.load(x[:, None] + at[None, :] * x_input, mask=real_row[:, None] & real[None, :], other=0.0)
        right = tl.load(weight[:, None] + at[None, :] * weight_input, mask=real_output[:, None] & real[None, :], other=0.0)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, tl.trans(right), total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=["rows"])  # one machine code for every number of rows
def _linear(  # type: ignore[no-untyped-def]
    x, weight, out, rows, outputs, inputs, x_row, x_head, x_input, weight_head, weight_output, weight_input, out_row, out_head,
    WIDEN: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(0).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    head = tl.program_id(2).to(tl.int64)
    left, right = x + head * x_head + row * x_row, weight + head * weight_head + output * weight_output
    total = _tile(left, row < rows, right, output < outputs, inputs, x_input, weight_input, WIDEN, ROWS, OUTPUTS, INPUTS)
    at = out + head * out_head + row[:, None] * out_row + output[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (output < outputs)[None, :])


@triton.jit
def _experts(  # type: ignore[no-untyped-def]
    x, weight, out, source, ends, tile_ends, tile_experts, experts, outputs, inputs, x_row, weight_expert, weight_output,
    WIDEN: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(1)
    expert = tl.load(tile_experts + tile)
    if expert >= experts:
        return
    before = tl.maximum(expert - 1, 0)
    first = tl.where(expert > 0, tl.load(ends + before), 0)
    first_tile = tl.where(expert > 0, tl.load(tile_ends + before), 0)
    row = first + (tile - first_tile) * ROWS + tl.arange(0, ROWS)
    real = row < tl.load(ends + expert)
    output = tl.program_id(0).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    left = x + tl.load(source + row, mask=real, other=0) * x_row
    right = weight + expert * weight_expert + output * weight_output
    total = _tile(left, real, right, output < outputs, inputs, 1, 1, WIDEN, ROWS, OUTPUTS, INPUTS)
    at = out + row[:, None] * outputs + output[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=real[:, None] & (output < outputs)[None, :])


@triton.jit
def _combine(x, rows, weights, slots, out, width, chosen, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    real = at < width
    total = tl.zeros([WIDTH], tl.float32)
    for choice in range(chosen):
        slot = tl.load(slots + row * chosen + choice)
        total += tl.load(rows + slot * width + at, mask=real, other=0.0).to(tl.float32) * tl.load(weights + row * chosen + choice)
    value = tl.load(x + row * width + at, mask=real, other=0.0)
    tl.store(out + row * width + at, (value.to(tl.float32) + total).to(value.dtype), mask=real)


def rms_norm(x: Float[Tensor, "n m"], weight: Float[Tensor, " m"], eps: float) -> Float[Tensor, "n m"]:
    """See rows.rms_norm; x's rows lie dense."""
    x = x.contiguous()
    out = torch.empty_like(x)
    if len(x):
        _norm[(len(x),)](x, weight, out, x.shape[1], eps, WIDTH=triton.next_power_of_2(x.shape[1]), enable_fp_fusion=True)
    return out


def linear(x: Float[Tensor, "n i"], weight: Float[Tensor, "o i"], dtype: torch.dtype | None = None) -> Float[Tensor, "n o"]:
    """See rows.linear."""
    out = torch.empty(len(x), weight.shape[0], dtype=dtype or x.dtype, device=x.device)
    _launch(x.unsqueeze(1), weight.unsqueeze(0), out.unsqueeze(1))
    return out


def head_linear(x: Float[Tensor, "n h i"], weight: Float[Tensor, "h o i"]) -> Float[Tensor, "n h o"]:
    """See rows.head_linear."""
    out = torch.empty(*x.shape[:2], weight.shape[1], dtype=x.dtype, device=x.device)
    _launch(x, weight, out)
    return out


def _launch(x: Tensor, weight: Tensor, out: Tensor) -> None:
    n, heads, inputs = x.shape
    outputs = weight.shape[1]
    if not n:
        return
    widen = x.dtype != weight.dtype or widens(x.dtype)
    _linear[(triton.cdiv(outputs, _OUTPUTS), triton.cdiv(n, _ROWS), heads)](
        x, weight, out, n, outputs, inputs, x.stride(0), x.stride(1), x.stride(2), *weight.stride(), out.stride(0), out.stride(1),
        WIDEN=widen, ROWS=_ROWS, OUTPUTS=_OUTPUTS, INPUTS=_inputs(x, widen), num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip


def expert_linear(
    x: Float[Tensor, "v i"], weight: Float[Tensor, "g o i"], source: Int[Tensor, " w"], ends: Int[Tensor, " g"]
) -> Float[Tensor, "w o"]:
    """See rows.expert_linear; x and weight have one type. Tiles hold rows of one expert, whose weights are read once for each of its tiles."""
    experts, outputs, inputs = weight.shape
    w = len(source)
    x, weight = x.contiguous(), weight.contiguous()
    out = torch.empty(w, outputs, dtype=x.dtype, device=x.device)
    if not w:
        return out
    tiles = min(w, experts + w // _ROWS)  # no more are needed however the rows fall
    tile_ends = ((ends.diff(prepend=ends.new_zeros(1)) + _ROWS - 1) // _ROWS).cumsum(0)
    tile_experts = torch.searchsorted(tile_ends, torch.arange(tiles, device=x.device), right=True)
    _experts[(triton.cdiv(outputs, _OUTPUTS), tiles)](
        x, weight, out, source, ends, tile_ends, tile_experts, experts, outputs, inputs, x.stride(0), weight.stride(0), weight.stride(1),
        WIDEN=widens(x.dtype), ROWS=_ROWS, OUTPUTS=_OUTPUTS, INPUTS=_inputs(x, False), num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return out


def combine(
    x: Float[Tensor, "n m"], rows: Float[Tensor, "w m"], weights: Float[Tensor, "n k"], slots: Int[Tensor, "n k"]
) -> Float[Tensor, "n m"]:
    """See rows.combine; `weights` are FP32."""
    n, width = x.shape
    x, out = x.contiguous(), torch.empty(n, width, dtype=x.dtype, device=x.device)
    if n:
        block = min(1024, triton.next_power_of_2(width))
        _combine[(n, triton.cdiv(width, block))](
            x, rows, weights.contiguous(), slots.contiguous(), out, width, slots.shape[1], WIDTH=block, enable_fp_fusion=True
        )
    return out


def _inputs(x: Tensor, widen: bool) -> int:
    """Inputs of a step: 128 bytes of FP32, or of BF16 twice that."""
    return 32 if widen or x.element_size() == 4 else 128
