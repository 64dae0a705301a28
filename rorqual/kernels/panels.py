"""Matrices in the layout that the compiled decode step reads: panels of 16 outputs (kernels/panels.h), in FP32, BF16, FP16 or INT8.

Two neighbouring panels are interleaved, input by input; an odd last one stands alone. INT8 keeps one scale per output, its largest magnitude over 127. Shape letters: e experts, i inputs, o outputs, p panels of 16 outputs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from rorqual.errors import ConfigError

PANEL = 16
KINDS = {"fp32": 1, "bf16": 2, "fp16": 3, "int8": 4}
"""Numbers of the types in panels.h."""
_DTYPES = {1: torch.float32, 2: torch.bfloat16, 3: torch.float16, 4: torch.int8}


class Panels:
    """A matrix [o i], or a stack of them [e o i]; with `halves` each of the stack is two matrices, gate above up.

    `values` is [matrices, p i 16], `scale` [matrices, 16 p] for INT8; outputs past o are zero. ConfigError for an unknown type.
    """

    def __init__(self, weight: Shaped[Tensor, "... o i"], dtype: str = "fp32", *, halves: bool = False) -> None:
        if dtype not in KINDS:
            raise ConfigError(f"weights ({dtype!r}) must be one of {', '.join(KINDS)}")
        self.kind, self._shape = KINDS[dtype], (-1, weight.shape[-2] // 2 if halves else weight.shape[-2], weight.shape[-1])
        self.outputs = self._shape[1]
        matrices, padded = weight.numel() // (self._shape[1] * self._shape[2]), -(-self.outputs // PANEL) * PANEL
        self.values = torch.zeros(matrices, padded * self._shape[2], dtype=_DTYPES[self.kind])
        self._padded = padded
        self.scale = torch.zeros(matrices, padded) if dtype == "int8" else None
        self.fill(weight)

    @torch.no_grad()
    def fill(self, weight: Shaped[Tensor, "... o i"]) -> None:
        """Takes the values of a matrix of the same shape."""
        for number, matrix in enumerate(weight.detach().reshape(self._shape).unbind(0)):
            if self.scale is not None:
                scale = matrix.float().abs().amax(dim=1).div_(127.0)
                self.scale[number, : self.outputs] = scale
                matrix = matrix.float().div(scale.clamp_min(1e-30).unsqueeze(1)).round_()
            pairs, last = self._views(self.values[number])
            padded = matrix if len(matrix) == self._padded else torch.nn.functional.pad(matrix, (0, 0, 0, self._padded - len(matrix)))
            pairs.copy_(padded[: 2 * PANEL * len(pairs)].view(-1, 2 * PANEL, pairs.shape[1]).transpose(1, 2))
            last.copy_(padded[2 * PANEL * len(pairs) :].t())

    def _views(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(pairs of panels [pairs, i, 32], the odd last one [i, 16 or 0]) of one matrix's values."""
        inputs, paired = self._shape[2], self._padded // (2 * PANEL) * 2 * PANEL
        return values[: paired * inputs].view(-1, inputs, 2 * PANEL), values[paired * inputs :].view(inputs, -1)

    def lossy(self, weight: Shaped[Tensor, "..."]) -> bool:
        """Whether weights of this type lose digits in these panels."""
        return self.kind not in (1, 2 if weight.dtype == torch.bfloat16 else 1)

    def dense(self) -> Float[Tensor, "e o i"]:
        """What the panels stand for, in FP32, one matrix after the other."""
        views = [self._views(values) for values in self.values]
        out = torch.stack([torch.cat([pairs.transpose(1, 2).flatten(0, 1), last.t()]) for pairs, last in views]).float()
        return (out if self.scale is None else out * self.scale.unsqueeze(2))[:, : self.outputs]

    def relative_error(self, weight: Shaped[Tensor, "... o i"]) -> float:
        """Root of the sum of squared differences from `weight` over that of its squares."""
        wide = weight.detach().float().reshape(self._shape)
        return float((self.dense() - wide).square().sum().sqrt() / wide.square().sum().sqrt().clamp_min(1e-30))
