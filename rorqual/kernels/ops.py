"""Every operation that has more than one implementation, and the one place that chooses (design: kernel choice in one place).

The plain PyTorch version (reference.py) defines what is right. The compiled C++ version (native.py) is taken for FP32
tensors on a CPU where it could be built; grouped GEMMs on CUDA take `F.grouped_mm`. `backend_report` says which and why.
Shape letters: b batch, s query position, t key position, n tokens, w rows, m model width, f FFN width, e expert, k chosen
expert, h head, d head width, r rotary width, p pair, v vocabulary.
"""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rorqual.kernels import native, reference, rows
from rorqual.kernels.reference import rope

__all__ = [
    "adamw",
    "attention",
    "backend_report",
    "combine_rows",
    "gather_rows",
    "grouped_dgrad",
    "grouped_fprop",
    "grouped_wgrad",
    "isolated_attention",
    "linear_cross_entropy",
    "mla_heads",
    "rms_norm",
    "rope",
    "row_kernels",
    "sort_by_expert",
    "sum_of_squares",
    "swiglu",
    "swiglu_packed",
    "swiglu_packed_backward",
    "top_k",
]

_TURNED = 1 << 18  # elements of the largest expert whose weights the compiled kernel turns over before it multiplies: a megabyte of cache


def rms_norm(x: Float[Tensor, "... m"], weight: Float[Tensor, " m"], eps: float) -> Float[Tensor, "... m"]:
    """x / sqrt(mean(x^2) + eps) * weight; statistics in FP32."""
    return (native if native.usable(x, weight) else reference).rms_norm(x, weight, eps)


def swiglu(gate: Float[Tensor, "... f"], up: Float[Tensor, "... f"]) -> Float[Tensor, "... f"]:
    """silu(gate) * up."""
    return (native if native.usable(gate, up) else reference).swiglu(gate, up)


def swiglu_packed(hidden: Float[Tensor, "w g"]) -> Float[Tensor, "w f"]:
    """silu of the first half times the second half; without autograd."""
    return (native if native.usable(hidden) else reference).swiglu_packed(hidden)


def swiglu_packed_backward(d_out: Float[Tensor, "w f"], hidden: Float[Tensor, "w g"]) -> tuple[Float[Tensor, "w g"], Float[Tensor, "w f"]]:
    """(gradient of `hidden`, swiglu_packed(hidden) anew); without autograd."""
    return (native if native.usable(d_out, hidden) else reference).swiglu_packed_backward(d_out, hidden)


def mla_heads(
    q: Float[Tensor, "b s h d"],
    kv: Float[Tensor, "b s w"],
    k_rope: Float[Tensor, "b s r"],
    cos: Float[Tensor, "b s p"],
    sin: Float[Tensor, "b s p"],
) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s d"], Float[Tensor, "b h s c"]]:
    """Rotated queries and keys, and values, head-major, from MLA's projections and the shared unrotated key."""
    return (native if k_rope.shape[-1] <= native.ROPE_LIMIT and native.usable(q, kv, k_rope, cos) else reference).mla_heads(
        q, kv, k_rope, cos, sin
    )


def attention(
    q: Float[Tensor, "b h s d"], k: Float[Tensor, "b h t d"], v: Float[Tensor, "b h t c"], scale: float, mask: Bool[Tensor, "b s t"] | None
) -> Float[Tensor, "b s o"]:
    """softmax(q k^T scale) v over the allowed keys, heads side by side; mask None is causal with s = t."""
    if mask is None and native.usable(q, k, v):
        return native.causal_attention(q, k, v, scale)
    return reference.attention(q, k, v, scale, mask)


def isolated_attention(
    q: Float[Tensor, "b h s d"], k: Float[Tensor, "b h s d"], v: Float[Tensor, "b h s c"], scale: float, runs: tuple[tuple[int, ...], ...]
) -> Float[Tensor, "b s o"]:
    """Causal attention within each run of a row alone: packed samples cost what they cost one by one, and no mask of s^2 is made.

    runs: for each row the lengths of its samples, one after the other, which add up to s.
    """
    if native.usable(q, k, v):
        return native.causal_attention(q, k, v, scale, runs)
    rows = []
    for lengths, *row in zip(runs, *(tensor.split(1) for tensor in (q, k, v)), strict=True):
        parts = zip(*(tensor.split(list(lengths), dim=2) for tensor in row), strict=True)
        rows.append(torch.cat([attention(q, k, v, scale, None) for q, k, v in parts], dim=1))
    return torch.cat(rows)


def top_k(x: Float[Tensor, "... e"], k: int) -> tuple[Float[Tensor, "... k"], Int[Tensor, "... k"]]:
    """The k largest of the last dimension, largest first; without autograd."""
    return (native if native.usable(x) else reference).top_k(x, k)


def sort_by_expert(indices: Int[Tensor, "n k"], num_experts: int) -> tuple[Int[Tensor, " w"], Int[Tensor, "n k"], Int[Tensor, " e"]]:
    """(token of each row, row of each (token, choice), end of each expert's rows), rows stable-sorted by expert."""
    use_native = indices.device.type == "cpu" and not torch.compiler.is_compiling() and native.library().library is not None
    return (native if use_native else reference).sort_by_expert(indices, num_experts)


def gather_rows(x: Float[Tensor, "n m"], source: Int[Tensor, " w"], slots: Int[Tensor, "n k"]) -> Float[Tensor, "w m"]:
    """Row w is a copy of token source[w]; `slots` is the inverse, used by the gradient."""
    return (native if native.usable(x) else reference).gather_rows(x, source, slots)


def combine_rows(
    rows: Float[Tensor, "w m"], weights: Float[Tensor, "n k"], slots: Int[Tensor, "n k"], source: Int[Tensor, " w"]
) -> Float[Tensor, "n m"]:
    """Sum over j of weights[t, j] * rows[slots[t, j]]."""
    return (native if native.usable(rows, weights) else reference).combine_rows(rows, weights, slots, source)


def linear_cross_entropy(
    hidden: Float[Tensor, "n m"], weight: Float[Tensor, "v m"], targets: Int[Tensor, " n"], scale: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(scale * sum over targets >= 0 of -log softmax(hidden W^T)[target], the same sum unscaled and detached), in FP32."""
    return (native if native.usable(hidden, weight) else reference).linear_cross_entropy(hidden, weight, targets, scale)


def adamw(parameter: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, **constants: float) -> None:
    """One AdamW update in place; see reference.adamw for the constants."""
    dense = all(t.is_contiguous() for t in (parameter, grad, exp_avg, exp_avg_sq))
    (native if dense and native.usable(parameter, grad) else reference).adamw(parameter, grad, exp_avg, exp_avg_sq, **constants)  # type: ignore[arg-type]


def sum_of_squares(x: Float[Tensor, "..."]) -> float:
    """Sum of squares, accumulated in FP64."""
    return native.sum_of_squares(x) if x.is_contiguous() and native.usable(x) else float(x.double().square().sum())


def _grouped_mm_runs(x: Tensor, *widths: int) -> bool:
    """Whether torch's grouped GEMM takes these: a GPU, BF16, strides in whole 16 bytes."""
    return x.device.type == "cuda" and x.dtype == torch.bfloat16 and all(w * x.element_size() % 16 == 0 for w in widths)


def _grouped_kernels(weight: Tensor, *rows: Tensor) -> ModuleType:
    """The compiled GEMMs of experts take widths in whole lines of the cache."""
    return native if weight.shape[1] % 16 == 0 and weight.shape[2] % 16 == 0 and native.usable(weight, *rows) else reference


def grouped_fprop(x: Float[Tensor, "w i"], weight: Float[Tensor, "e o i"], offs: Int[Tensor, " e"]) -> Float[Tensor, "w o"]:
    """Rows of expert e times weight[e]^T. offs[-1] must be the row count: rows past it would be garbage in the library's version."""
    if _grouped_mm_runs(x, *weight.shape[1:]):
        return torch.nn.functional.grouped_mm(x, weight.transpose(-2, -1), offs=offs)
    kernels = _grouped_kernels(weight, x) if weight[0].numel() <= _TURNED else reference
    return kernels.grouped_fprop(x, weight, offs)


def grouped_dgrad(dy: Float[Tensor, "w o"], weight: Float[Tensor, "e o i"], offs: Int[Tensor, " e"]) -> Float[Tensor, "w i"]:
    """Rows of expert e times weight[e]."""
    if _grouped_mm_runs(dy, *weight.shape[1:]):
        return torch.nn.functional.grouped_mm(dy, weight, offs=offs)
    return _grouped_kernels(weight, dy).grouped_dgrad(dy, weight, offs)


def grouped_wgrad(
    dy: Float[Tensor, "w o"], x: Float[Tensor, "w i"], offs: Int[Tensor, " e"], weight: Float[Tensor, "e o i"]
) -> Float[Tensor, "e o i"]:
    """dy^T x over the rows of each expert; exactly zero for experts without rows, which the library's version leaves undefined."""
    if not _grouped_mm_runs(x, *weight.shape[1:]):
        return _grouped_kernels(weight, dy, x).grouped_wgrad(dy, x, offs, weight)
    grad = torch.nn.functional.grouped_mm(dy.t(), x, offs=offs)
    empty = torch.diff(offs, prepend=offs.new_zeros(1)) == 0
    return grad.masked_fill_(empty.view(-1, 1, 1), 0.0)


def row_kernels(device: str) -> tuple[ModuleType, str | None]:
    """(kernels.triton_rows, None) for "cuda" where it runs, else (kernels.rows, why): the operations of a decode step on a GPU."""
    if device != "cuda" or not torch.cuda.is_available():
        return rows, "no CUDA device"
    if find_spec("triton") is None:
        return rows, "triton is not installed; install rorqual[gpu]"
    capability = torch.cuda.get_device_capability()
    if torch.version.hip is None and capability < (8, 0):
        return rows, f"the device has compute capability {capability[0]}.{capability[1]}, and the Triton kernels take 8.0 and up"
    from rorqual.kernels import triton_rows

    return triton_rows, None


def backend_report() -> list[dict[str, str]]:
    """For each operation: {op, backend, why}, as `rorqual doctor` prints it."""
    built = native.library()
    compiled = "compiled C++" if built.library is not None else "plain PyTorch"
    gpu = torch.cuda.is_available()
    report = [{"op": op, "backend": compiled, "why": built.detail} for op in (
        "rms_norm", "swiglu", "mla_heads", "top_k", "sort_by_expert", "gather_rows", "combine_rows", "linear_cross_entropy", "adamw",
        "fp8.dequantize", "fp8.quantize", "tree_attention", "attention_inputs", "add_feed_forward", "add_experts")]  # fmt: skip
    sdpa = "scaled_dot_product_attention, V padded to the width of Q and K"
    causal = f"compiled C++ in FP32 on a CPU, else {sdpa}" if built.library is not None else sdpa
    report.append(
        {"op": "attention", "backend": causal, "why": "half the square is enough under a causal mask, and its scores stay in the cache"}
    )
    if gpu:
        grouped = ("F.grouped_mm", "CUDA device, BF16")
    elif built.library is not None:
        grouped = (
            "compiled C++ for widths of whole 16s, else one GEMM per expert",
            "tiles in registers reach the ceiling on an expert's few rows",
        )
    else:
        grouped = ("one GEMM per expert", "no CUDA device; on a CPU a GEMM per expert into one buffer is faster than grouped_mm")
    report.append({"op": "grouped GEMM", "backend": grouped[0], "why": grouped[1]})
    without = row_kernels("cuda")[1]
    if without is None:
        step = ("Triton, recorded in CUDA graphs", "CUDA device; BF16 or FP32 weights")
    else:
        step = ("compiled decode step" if built.library is not None else "NumPy step", f"{without}; {built.detail}")
    report.append({"op": "latent attention of decode", "backend": step[0], "why": step[1]})
    return report
