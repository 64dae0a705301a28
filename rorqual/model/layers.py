"""The leaves of the model: every GEMM, every normalisation and the dense FFN (report section 2.1).

FP8, LoRA, deferred weight gradients and quantised inference replace these classes, so nothing above them says how a
weight is stored. `GroupedLinear` offers its three GEMMs without autograd; the fused experts function (moe.py) calls
only those. Shape letters: n tokens, m model width, f FFN width, e expert, i in-features, o out-features.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rorqual.kernels import ops


class Linear(nn.Module):
    """y = x W^T, never with a bias (no Linear of this family has one)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def dense_weight(self) -> Float[Tensor, "o i"]:
        """The weight as a plain matrix whatever its storage; absorbed MLA takes W_UK and W_UV from it."""
        return self.weight

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        return torch.nn.functional.linear(x, self.weight)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}"


class GroupedLinear(nn.Module):
    """One Linear per expert on expert-sorted rows: rows offs[e-1]..offs[e] belong to expert e, and offs[-1] is the row count.

    `fprop`, `dgrad` and `wgrad` are the three GEMMs without autograd; `forward` joins them to autograd for those who
    compose the experts unfused. Experts without rows get exactly zero weight gradients (field case F14).
    """

    def __init__(self, num_groups: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.num_groups, self.in_features, self.out_features = num_groups, in_features, out_features
        self.weight = nn.Parameter(torch.empty(num_groups, out_features, in_features))

    def fprop(self, x: Float[Tensor, "n i"], offs: Int[Tensor, " e"]) -> Float[Tensor, "n o"]:
        """y_r = W_e(r) x_r."""
        return ops.grouped_fprop(x.detach(), self.weight.detach(), offs)

    def dgrad(self, dy: Float[Tensor, "n o"], offs: Int[Tensor, " e"]) -> Float[Tensor, "n i"]:
        """dx_r = W_e(r)^T dy_r."""
        return ops.grouped_dgrad(dy.detach(), self.weight.detach(), offs)

    def wgrad(self, dy: Float[Tensor, "n o"], x: Float[Tensor, "n i"], offs: Int[Tensor, " e"]) -> Float[Tensor, "e o i"]:
        """dW_e = sum over rows r of e of dy_r x_r^T, each expert written once."""
        return ops.grouped_wgrad(dy.detach(), x.detach(), offs, self.weight.detach())

    def forward(self, x: Float[Tensor, "n i"], offs: Int[Tensor, " e"]) -> Float[Tensor, "n o"]:
        return _GroupedLinearFunction.apply(x, self.weight, offs, self)

    def extra_repr(self) -> str:
        return f"{self.num_groups} x ({self.in_features} -> {self.out_features})"


class _GroupedLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, offs, layer):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, offs)
        ctx.layer = layer
        return layer.fprop(x, offs)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        x, offs = ctx.saved_tensors
        dy = dy.contiguous()
        dx = ctx.layer.dgrad(dy, offs) if ctx.needs_input_grad[0] else None
        dw = ctx.layer.wgrad(dy, x, offs) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, the mean in FP32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Float[Tensor, "... m"]) -> Float[Tensor, "... m"]:
        return ops.rms_norm(x, self.weight, self.eps)


class Embedding(nn.Module):
    """Token embedding; its matrix is shared with the MTP modules (report section 2.2) and, when tied, with the head."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, width))

    def forward(self, input_ids: Int[Tensor, "b s"]) -> Float[Tensor, "b s m"]:
        return torch.nn.functional.embedding(input_ids, self.weight)


class DenseMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)); the FFN of the first layers, and the shared experts."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def activation(self, gate: Float[Tensor, "... f"], up: Float[Tensor, "... f"]) -> Float[Tensor, "... f"]:
        """silu(gate) * up; the recompute policy wraps this method."""
        return ops.swiglu(gate, up)

    def forward(self, x: Float[Tensor, "... m"]) -> Float[Tensor, "... m"]:
        return self.down_proj(self.activation(self.gate_proj(x), self.up_proj(x)))
