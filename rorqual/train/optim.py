"""AdamW with FP32 master weights and FP32 or BF16 moments, and clipping by the global norm (report sections 3.3.3 and 4.2).

    g <- g min(1, clip / |g|)          m <- beta1 m + (1 - beta1) g          v <- beta2 v + (1 - beta2) g^2
    w <- w (1 - lr wd) - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)

On a device that trains in FP32 the master weights are the parameters themselves; BF16 parameters get an FP32 master and an
FP32 sum of the micro-batches' gradients. `t` counts the updates applied, so a skipped step leaves no trace. A parameter
without a gradient is treated as one whose gradient is zero, whatever the layout (field case F14).
Trap: torch's own AdamW fails with BF16 moments on FP32 parameters on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from rorqual.kernels import ops


class AdamWConfig(Protocol):
    """What the optimiser needs to know; `train.hyperparams.OptimizerConfig` is one."""

    @property
    def beta1(self) -> float: ...
    @property
    def beta2(self) -> float: ...
    @property
    def eps(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def clip_norm(self) -> float: ...
    @property
    def moments(self) -> str: ...

    def decays(self, ndim: int) -> bool:
        """Whether a parameter of `ndim` dimensions is decayed."""
        ...


def global_norm(gradients: Sequence[Tensor | None]) -> float:
    """sqrt(sum of squares of all elements); non-finite as soon as one element is. Absent gradients add nothing.

    On a CPU in FP64 and an order of its own, whatever the number of threads; elsewhere one foreach pass and one transfer.
    """
    present = [g.detach() for g in gradients if g is not None]
    if not present:
        return 0.0
    if present[0].device.type == "cpu":
        return sum(ops.sum_of_squares(g) for g in present) ** 0.5
    norms = torch.stack([norm.double() for norm in torch._foreach_norm(present)])
    return float(norms.square().sum().sqrt())


def adamw_foreach(
    weights: list[Tensor], gradients: list[Tensor], exp_avg: list[Tensor], exp_avg_sq: list[Tensor], *,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int, grad_scale: float,
) -> None:  # fmt: skip
    """`ops.adamw` on lists of FP32 weights and gradients at once: a handful of launches on an accelerator, however many tensors.

    BF16 moments are widened, used at full precision, and rounded once when they are stored.
    """
    m, v = exp_avg, exp_avg_sq
    if exp_avg[0].dtype != torch.float32:
        m, v = [x.float() for x in exp_avg], [x.float() for x in exp_avg_sq]
    gradients = list(torch._foreach_mul(gradients, grad_scale))
    torch._foreach_lerp_(m, gradients, 1 - beta1)
    torch._foreach_mul_(v, beta2)
    torch._foreach_addcmul_(v, gradients, gradients, 1 - beta2)
    if m is not exp_avg:
        torch._foreach_copy_(exp_avg, m)
        torch._foreach_copy_(exp_avg_sq, v)
    denominator = torch._foreach_sqrt(v)
    torch._foreach_div_(denominator, (1 - beta2**step) ** 0.5)
    torch._foreach_add_(denominator, eps)
    torch._foreach_mul_(weights, 1 - lr * weight_decay)
    torch._foreach_addcdiv_(weights, m, denominator, -lr / (1 - beta1**step))


class AdamW:
    """Optimiser over named parameters. Buffers, the router bias among them, are out of its reach (field case F15)."""

    def __init__(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], config: AdamWConfig, master: Mapping[str, Tensor] | None = None
    ) -> None:
        """`master` gives FP32 weights for parameters that were cast to BF16; without it they start from the rounded values."""
        self.config = config
        self.parameters = dict(named_parameters)
        self.updates = 0
        moment = torch.bfloat16 if config.moments == "bf16" else torch.float32
        given = master or {}
        self.master = {
            name: p.detach() if p.dtype == torch.float32 else given.get(name, p.detach().float()) for name, p in self.parameters.items()
        }
        self.exp_avg = {name: torch.zeros_like(w, dtype=moment) for name, w in self.master.items()}
        self.exp_avg_sq = {name: torch.zeros_like(w, dtype=moment) for name, w in self.master.items()}
        self._sums: dict[str, Tensor] = {}
        self._groups = [
            (decay, names)
            for decay in (True, False)
            if (names := [name for name, p in self.parameters.items() if config.decays(p.ndim) is decay])
        ]

    @torch.no_grad()
    def accumulate(self) -> None:
        """Moves the gradients of BF16 parameters into FP32 sums; called after each micro-batch's backward pass."""
        for name, p in self.parameters.items():
            if p.dtype != torch.float32 and p.grad is not None:
                if name in self._sums:
                    self._sums[name].add_(p.grad)
                else:
                    self._sums[name] = p.grad.float()
                p.grad = None

    def gradients(self) -> dict[str, Tensor]:
        """The step's FP32 gradients by parameter name; those without any are left out."""
        return {name: g for name, p in self.parameters.items() if (g := self._sums.get(name, p.grad)) is not None}

    def gradient_norm(self) -> float:
        """Global norm before clipping."""
        gradients = self.gradients()
        return global_norm([gradients.get(name) for name in self.parameters])

    def zero_grad(self) -> None:
        """Drops the step's gradients."""
        self._sums.clear()
        for p in self.parameters.values():
            p.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float, gradient_norm: float) -> None:
        """One update of all parameters with the gradients clipped to `clip_norm`; the caller has seen that the norm is finite."""
        self.updates += 1
        scale = min(1.0, self.config.clip_norm / gradient_norm) if gradient_norm > 0 else 1.0
        gradients = self.gradients()
        for decay, names in self._groups:
            constants = {
                "lr": learning_rate, "beta1": self.config.beta1, "beta2": self.config.beta2, "eps": self.config.eps,
                "weight_decay": self.config.weight_decay if decay else 0.0, "step": self.updates, "grad_scale": scale,
            }  # fmt: skip
            rows = [
                (self.master[name], gradients[name] if name in gradients else torch.zeros_like(self.master[name]), self.exp_avg[name], self.exp_avg_sq[name])
                for name in names
            ]  # fmt: skip
            if rows[0][0].device.type == "cpu":
                for row in rows:
                    ops.adamw(*row, **constants)  # type: ignore[arg-type]
            else:
                adamw_foreach(*(list(tensors) for tensors in zip(*rows, strict=True)), **constants)  # type: ignore[arg-type]
        for name, p in self.parameters.items():
            if p.dtype != torch.float32:
                p.copy_(self.master[name])

    # ------------------------------------------------------------------ state by logical name

    def state(self) -> dict[str, Tensor]:
        """The moments as `exp_avg.NAME` and `exp_avg_sq.NAME`: copy into them to restore; masters are saved as the parameters themselves."""
        moments = {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
        return {f"{kind}.{name}": tensor for kind, tensors in moments.items() for name, tensor in tensors.items()}

    @torch.no_grad()
    def sync_parameters(self) -> None:
        """Writes the master weights into BF16 parameters, after the masters were loaded."""
        for name, p in self.parameters.items():
            if p.dtype != torch.float32:
                p.copy_(self.master[name])
