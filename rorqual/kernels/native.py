"""The compiled CPU kernels (native.cpp, attention.cpp, grouped.cpp, fp8.cpp) as functions on FP32 tensors, with their gradients.

Each has the signature of its namesake in reference.py. `library()` builds on first use; a self-test against the reference
decides whether the result is trusted. Shape letters as in reference.py.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from rorqual.kernels import reference
from rorqual.kernels.build import Built, build

CHUNKS = 16  # fixed number of partial sums over rows, so that threads never change a result
ROPE_LIMIT = 1024  # widest rotary part that the gradient of mla_heads keeps on the stack
_VOCABULARY_CHUNK = 1 << 21  # logits held at a time by linear_cross_entropy, in elements


@functools.cache
def library() -> Built:
    """The loaded kernels after their self-test, or the reason for their absence."""
    built = build()
    if built.library is None:
        return built
    built.library.rq_sum_of_squares.restype = ctypes.c_double
    built.library.rq_fp8_quantize.restype = ctypes.c_long
    x = torch.linspace(-3, 3, 24).view(2, 12)
    got = torch.empty(2, 6)
    built.library.rq_swiglu(_p(x), _p(x, 6), ctypes.c_long(12), _p(got), ctypes.c_long(2), ctypes.c_long(6))
    if not torch.allclose(got, reference.swiglu_packed(x), atol=1e-5):
        return Built(None, f"{built.detail}, but its self-test gave other values than the reference")
    return built


def usable(*tensors: Tensor) -> bool:
    """Whether these tensors can go through the compiled kernels: FP32, on the CPU, not being traced by a compiler."""
    return all(t.dtype == torch.float32 for t in tensors) and reachable(*tensors)


def reachable(*tensors: Tensor) -> bool:
    """The same for kernels that take other types too."""
    return all(t.device.type == "cpu" for t in tensors) and not torch.compiler.is_compiling() and library().library is not None


def _p(tensor: Tensor, offset: int = 0) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr() + 4 * offset)


def _call(name: str, *args: Any) -> Any:
    """Calls one kernel: tensors as pointers, ints as long, floats as float, truth values as int."""
    kinds = {int: ctypes.c_long, float: ctypes.c_float, bool: ctypes.c_int}
    values = [_p(a) if isinstance(a, Tensor) else a if a is None or isinstance(a, ctypes._SimpleCData) else kinds[type(a)](a) for a in args]
    return getattr(library().library, name)(*values)


def _rows(x: Tensor) -> Tensor:
    """x as a matrix whose last dimension is dense; a copy only if it must be."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):  # type: ignore[no-untyped-def]
        rows = _rows(x)
        y, rstd = torch.empty(rows.shape), torch.empty(rows.shape[0])
        _call("rq_rms_norm", rows, rows.stride(0), weight, y, rstd, *rows.shape, eps)
        ctx.save_for_backward(rows, weight, rstd)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        rows, weight, rstd = ctx.saved_tensors
        dx, parts = torch.empty(rows.shape), torch.empty(CHUNKS, rows.shape[1])
        _call("rq_rms_norm_backward", dy.contiguous(), rows, rows.stride(0), weight, rstd, dx, parts, *rows.shape, CHUNKS)
        return dx.view(dy.shape), parts.sum(0), None


def rms_norm(x: Float[Tensor, "... m"], weight: Float[Tensor, " m"], eps: float) -> Float[Tensor, "... m"]:
    """See reference.rms_norm."""
    return _RMSNorm.apply(x, weight, eps)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(gate, up)
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty(gate.shape)
        f = gate.shape[-1]
        _call("rq_swiglu", gate, up, f, out, gate.numel() // f, f)
        return out

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        gate, up = (t.contiguous() for t in ctx.saved_tensors)
        f = gate.shape[-1]
        d_gate, d_up, act = torch.empty(gate.shape), torch.empty(gate.shape), torch.empty(gate.shape)
        _call("rq_swiglu_backward", dy.contiguous(), gate, up, f, d_gate, d_up, f, act, gate.numel() // f, f)
        return d_gate, d_up


def swiglu(gate: Float[Tensor, "... f"], up: Float[Tensor, "... f"]) -> Float[Tensor, "... f"]:
    """See reference.swiglu."""
    return _SwiGLU.apply(gate, up)


def swiglu_packed(hidden: Float[Tensor, "w g"]) -> Float[Tensor, "w f"]:
    """See reference.swiglu_packed; no autograd (the fused experts function calls it)."""
    n, f = hidden.shape[0], hidden.shape[1] // 2
    out = torch.empty(n, f)
    _call("rq_swiglu", hidden, _p(hidden, f), 2 * f, out, n, f)
    return out


def swiglu_packed_backward(d_out: Float[Tensor, "w f"], hidden: Float[Tensor, "w g"]) -> tuple[Float[Tensor, "w g"], Float[Tensor, "w f"]]:
    """See reference.swiglu_packed_backward; no autograd."""
    n, f = d_out.shape
    d_hidden, act = torch.empty(n, 2 * f), torch.empty(n, f)
    _call("rq_swiglu_backward", d_out.contiguous(), hidden, _p(hidden, f), 2 * f, d_hidden, _p(d_hidden, f), 2 * f, act, n, f)
    return d_hidden, act


class _MLAHeads(torch.autograd.Function):
    """Unrotated projections to rotated q, k and v, head-major, one pass over memory each way."""

    @staticmethod
    def forward(ctx, q_in, kv, k_rope, cos, sin):  # type: ignore[no-untyped-def]
        b, s, h, d = q_in.shape
        r = k_rope.shape[-1]
        c = kv.shape[-1] // h - (d - r)
        keys, cos, sin = _rows(k_rope), cos.contiguous(), sin.contiguous()
        q, k, v = torch.empty(b, h, s, d), torch.empty(b, h, s, d), torch.empty(b, h, s, c)
        _call("rq_mla_heads", q_in.contiguous(), kv.contiguous(), keys, keys.stride(0), cos, sin, q, k, v, b, s, h, d - r, r, c)
        ctx.save_for_backward(cos, sin)
        ctx.sizes = b, s, h, d, r, c
        return q, k, v

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        cos, sin = ctx.saved_tensors
        b, s, h, d, r, c = ctx.sizes
        grads = tuple(grad if grad.stride(3) == 1 else grad.contiguous() for grad in grads)
        dq_in, dkv, dk_rope = torch.empty(b, s, h, d), torch.empty(b, s, h * (d - r + c)), torch.empty(b, s, r)
        strided = [item for grad in grads for item in (grad, *grad.stride()[:3])]
        _call("rq_mla_heads_backward", *strided, cos, sin, dq_in, dkv, dk_rope, b, s, h, d - r, r, c)
        return dq_in, dkv, dk_rope, None, None


def mla_heads(
    q: Float[Tensor, "b s h d"],
    kv: Float[Tensor, "b s w"],
    k_rope: Float[Tensor, "b s r"],
    cos: Float[Tensor, "b s p"],
    sin: Float[Tensor, "b s p"],
) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s d"], Float[Tensor, "b h s c"]]:
    """See reference.mla_heads."""
    return _MLAHeads.apply(q, kv, k_rope, cos, sin)


class _CausalAttention(torch.autograd.Function):
    """Attention within each run of positions; scores live in the cache alone, their maximum and sum are kept for the gradient."""

    @staticmethod
    def forward(ctx, q, k, v, scale, runs):  # type: ignore[no-untyped-def]
        (b, h, s, d), c = q.shape, v.shape[-1]
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out, top, factor = torch.empty(b, s, h * c), torch.empty(b, h, s), torch.empty(b, h, s)
        served = _call("rq_causal_attention", q, k, v, runs, len(runs), out, top, factor, s, h, d, c, scale)
        enough(served, "attention", "the scores of 64 query rows")
        ctx.save_for_backward(q, k, v, top, factor, runs)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx, d_out):  # type: ignore[no-untyped-def]
        q, k, v, top, factor, runs = ctx.saved_tensors
        (_, h, s, d), c = q.shape, v.shape[-1]
        dq, dk, dv = torch.empty(q.shape), torch.empty(k.shape), torch.empty(v.shape)
        kept = q, k, v, runs, len(runs), d_out.contiguous(), top, factor
        served = _call("rq_causal_attention_backward", *kept, dq, dk, dv, s, h, d, c, ctx.scale)
        enough(served, "attention's gradient", "the scores of 64 query rows")
        return dq, dk, dv, None, None


def enough(served: int, what: str, room: str) -> None:
    """MemoryError where a kernel found no memory for its scratch."""
    if not served:
        raise MemoryError(f"{what} found no memory for {room}: free memory, or make sequences shorter")


def causal_attention(
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s c"],
    scale: float,
    runs: tuple[tuple[int, ...], ...] | None = None,
) -> Float[Tensor, "b s o"]:
    """reference.attention without a mask; with `runs` each row's lengths one after the other, every run by itself, to the bit as if alone."""
    whole = ((q.shape[2],),) * q.shape[0] if runs is None else runs
    table = [(row, sum(lengths[:place]), length) for row, lengths in enumerate(whole) for place, length in enumerate(lengths)]
    return _CausalAttention.apply(q, k, v, float(scale), torch.tensor(table, dtype=torch.int64).view(-1, 3))


def grouped_fprop(x: Float[Tensor, "w i"], weight: Float[Tensor, "e o i"], offs: Int[Tensor, " e"]) -> Float[Tensor, "w o"]:
    """See reference.grouped_fprop; widths are multiples of 16. A row's bits do not depend on the other rows."""
    e, o, i = weight.shape
    out = torch.empty(x.shape[0], o)
    enough(_call("rq_grouped_fprop", x.contiguous(), weight.contiguous(), offs, out, e, i, o), "the experts' GEMM", "one expert's weights")
    return out


def grouped_dgrad(dy: Float[Tensor, "w o"], weight: Float[Tensor, "e o i"], offs: Int[Tensor, " e"]) -> Float[Tensor, "w i"]:
    """See reference.grouped_dgrad; the same."""
    e, o, i = weight.shape
    out = torch.empty(dy.shape[0], i)
    _call("rq_grouped_dgrad", dy.contiguous(), weight.contiguous(), offs, out, e, i, o)
    return out


def grouped_wgrad(
    dy: Float[Tensor, "w o"], x: Float[Tensor, "w i"], offs: Int[Tensor, " e"], weight: Float[Tensor, "e o i"]
) -> Float[Tensor, "e o i"]:
    """See reference.grouped_wgrad; the same widths."""
    e, o, i = weight.shape
    out = torch.empty(weight.shape)
    _call("rq_grouped_wgrad", dy.contiguous(), x.contiguous(), offs, out, e, i, o)
    return out


def top_k(x: Float[Tensor, "... e"], k: int) -> tuple[Float[Tensor, "... k"], Int[Tensor, "... k"]]:
    """See reference.top_k; no autograd."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    values, indices = torch.empty(rows.shape[0], k), torch.empty(rows.shape[0], k, dtype=torch.int64)
    _call("rq_top_k", rows, values, indices, *rows.shape, k)
    return values.view(*x.shape[:-1], k), indices.view(*x.shape[:-1], k)


def sort_by_expert(indices: Int[Tensor, "n k"], num_experts: int) -> tuple[Int[Tensor, " w"], Int[Tensor, "n k"], Int[Tensor, " e"]]:
    """See reference.sort_by_expert."""
    indices = indices.contiguous()
    source, slots, offs = (
        torch.empty(indices.numel(), dtype=torch.int64),
        torch.empty_like(indices),
        torch.empty(num_experts, dtype=torch.int32),
    )
    _call("rq_sort_by_expert", indices, *indices.shape, num_experts, source, slots, offs)
    return source, slots, offs


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, source, slots):  # type: ignore[no-untyped-def]
        x = x.contiguous()
        rows = torch.empty(source.numel(), x.shape[1])
        _call("rq_gather_rows", x, source, rows, *rows.shape)
        ctx.save_for_backward(slots)
        return rows

    @staticmethod
    def backward(ctx, d_rows):  # type: ignore[no-untyped-def]
        (slots,) = ctx.saved_tensors
        dx = torch.empty(slots.shape[0], d_rows.shape[1])
        _call("rq_combine_rows", d_rows.contiguous(), None, slots, dx, *slots.shape, d_rows.shape[1])
        return dx, None, None


def gather_rows(x: Float[Tensor, "n m"], source: Int[Tensor, " w"], slots: Int[Tensor, "n k"]) -> Float[Tensor, "w m"]:
    """See reference.gather_rows."""
    return _GatherRows.apply(x, source, slots)


class _CombineRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, weights, slots):  # type: ignore[no-untyped-def]
        rows, weights = rows.contiguous(), weights.contiguous()
        out = torch.empty(slots.shape[0], rows.shape[1])
        _call("rq_combine_rows", rows, weights, slots, out, *slots.shape, rows.shape[1])
        ctx.save_for_backward(rows, weights, slots)
        return out

    @staticmethod
    def backward(ctx, d_out):  # type: ignore[no-untyped-def]
        rows, weights, slots = ctx.saved_tensors
        d_rows, d_weights = torch.empty(rows.shape), torch.empty(weights.shape)
        _call("rq_combine_rows_backward", d_out.contiguous(), rows, weights, slots, d_rows, d_weights, *slots.shape, rows.shape[1])
        return d_rows, d_weights, None


def combine_rows(
    rows: Float[Tensor, "w m"], weights: Float[Tensor, "n k"], slots: Int[Tensor, "n k"], source: Int[Tensor, " w"]
) -> Float[Tensor, "n m"]:
    """See reference.combine_rows."""
    return _CombineRows.apply(rows, weights, slots)


class _LinearCrossEntropy(torch.autograd.Function):
    """Logits exist for a block of rows at a time; gradients are made in the forward, where the logits are at hand."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, scale):  # type: ignore[no-untyped-def]
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        hidden = hidden.contiguous()
        n, v = hidden.shape[0], weight.shape[0]
        nll = torch.empty(n)
        d_hidden, d_weight = torch.empty(hidden.shape) if wanted else None, torch.empty(weight.shape) if wanted else None
        step = max(_VOCABULARY_CHUNK // v, 16)
        logits = torch.empty(min(step, n), v)
        for start in range(0, n, step):
            part = hidden[start : start + step]
            block = torch.mm(part, weight.t(), out=logits[: part.shape[0]])
            _call("rq_softmax_cross_entropy", block, targets[start : start + step], scale, nll[start : start + step], *block.shape)
            if d_hidden is not None and d_weight is not None:
                torch.mm(block, weight, out=d_hidden[start : start + step])
                torch.addmm(d_weight, block.t(), part, beta=0.0 if start == 0 else 1.0, out=d_weight)
        if d_weight is not None and n == 0:
            d_weight.zero_()
        ctx.save_for_backward(d_hidden, d_weight)
        total = nll.sum()
        ctx.mark_non_differentiable(total)
        return total * scale, total

    @staticmethod
    def backward(ctx, d_loss, _):  # type: ignore[no-untyped-def]
        d_hidden, d_weight = ctx.saved_tensors
        if d_loss.item() != 1.0:
            d_hidden, d_weight = d_hidden * d_loss, d_weight * d_loss
        return d_hidden, d_weight, None, None


def linear_cross_entropy(
    hidden: Float[Tensor, "n m"], weight: Float[Tensor, "v m"], targets: Int[Tensor, " n"], scale: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """See reference.linear_cross_entropy."""
    return _LinearCrossEntropy.apply(hidden, weight, targets.contiguous(), float(scale))


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
    """See reference.adamw: one pass over parameter, gradient and moments."""
    constants = (grad_scale, beta1, beta2, 1 - lr * weight_decay, lr / (1 - beta1**step), (1 - beta2**step) ** 0.5, eps)
    moments_bf16 = exp_avg.dtype == torch.bfloat16
    _call("rq_adamw", parameter, grad, exp_avg, exp_avg_sq, moments_bf16, parameter.numel(), *map(float, constants))


def sum_of_squares(x: Float[Tensor, "..."]) -> float:
    """Sum of squares in FP64, in a fixed order whatever the number of threads."""
    parts = torch.empty(CHUNKS, dtype=torch.float64)
    return library().library.rq_sum_of_squares(_p(x), ctypes.c_long(x.numel()), _p(parts), ctypes.c_long(CHUNKS))  # type: ignore[union-attr]


def fp8_dequantize(
    codes: Shaped[Tensor, "o i"],
    scales: Float[Tensor, "p q"],
    block: tuple[int, int],
    first_row: int,
    dtype: torch.dtype,
    out: Float[Tensor, "o i"],
) -> None:
    """See reference.fp8_dequantize; no autograd."""
    codes = _rows(codes)
    kind = ctypes.c_int(0 if dtype == torch.float32 else 1 if out.dtype == torch.bfloat16 else 2)
    _call("rq_fp8_dequantize", codes, codes.stride(0), scales.contiguous(), *block, first_row, out, out.stride(0), *codes.shape, kind)


def fp8_quantize(
    values: Float[Tensor, "o i"], block: tuple[int, int], power_of_two: bool, codes: Float[Tensor, "o i"], scales: Float[Tensor, "p q"]
) -> tuple[int, int] | None:
    """See reference.fp8_quantize; no autograd."""
    values = _rows(values if values.dtype in (torch.float32, torch.bfloat16) else values.float())
    bf16 = values.dtype == torch.bfloat16
    bad = _call("rq_fp8_quantize", values, bf16, values.stride(0), *block, power_of_two, codes, scales, *values.shape)
    return None if bad == scales.numel() else divmod(bad, scales.shape[1])
