"""Matrices in the layout that the compiled decode step reads: panels of 16 outputs (kernels/panels.h), in FP32, BF16, FP16 or INT8.

Two neighbouring panels are interleaved, input by input; an odd last one stands alone. INT8 keeps one scale per output, its largest magnitude
over 127. Shape letters: e experts, i inputs, o outputs, p panels of 16 outputs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from rorqual.errors import ConfigError
from rorqual.kernels import native
from rorqual.kernels.memory import LargePages

PANEL = 16
KINDS = {"fp32": 1, "bf16": 2, "fp16": 3, "int8": 4}
"""Numbers of the types in panels.h."""
_DTYPES = {1: torch.float32, 2: torch.bfloat16, 3: torch.float16, 4: torch.int8, 5: torch.int8}
_ROUNDED = 5


class Panels:
    """A matrix [o i], or a stack of them [e o i]; with `halves` each of the stack is two matrices, gate above up.

    `rounded` INT8 is for a kernel that rounds the inputs to 8 bits too and takes four of them at a time: for drafts, on machines that multiply
    bytes (`most_rounded`). `values` is [matrices, p i 16], `scale` [matrices, 16 p] for INT8; outputs past o are zero, and so are rounded
    inputs past i up to a multiple of four. `memory` is where the values will lie. `shift`, like `scale`, is 128 times the sum of a `rounded` output's weights. ConfigError for an unknown type.
    """

    def __init__(
        self, weight: Shaped[Tensor, "... o i"], dtype: str = "fp32", *, halves: bool = False, rounded: bool = False, memory: LargePages | None = None
    ) -> None:  # fmt: skip
        if dtype not in KINDS:
            raise ConfigError(f"weights ({dtype!r}) must be one of {', '.join(KINDS)}")
        self.kind, self._shape = KINDS[dtype], (-1, weight.shape[-2] // 2 if halves else weight.shape[-2], weight.shape[-1])
        if rounded and dtype == "int8":
            self.kind = _ROUNDED
        self.outputs, self._together = self._shape[1], 4 if self.kind == _ROUNDED else 1
        matrices = weight.numel() // (self._shape[1] * self._shape[2])
        self._padded = -(-self.outputs // PANEL) * PANEL, -(-self._shape[2] // self._together) * self._together
        shape, kept = (matrices, self._padded[0] * self._padded[1]), _DTYPES[self.kind]
        if memory is None:
            self.values = torch.zeros(shape, dtype=kept)
        else:
            pages, start = memory.take(shape[0] * shape[1] * kept.itemsize)
            self.values = torch.frombuffer(pages, dtype=kept, count=shape[0] * shape[1], offset=start).view(shape)
        self.scale = torch.zeros(matrices, self._padded[0]) if dtype == "int8" else None
        self.shift = torch.zeros(matrices, self._padded[0], dtype=torch.int32) if self.kind == _ROUNDED else None
        self.fill(weight)

    @torch.no_grad()
    def fill(self, weight: Shaped[Tensor, "... o i"]) -> None:
        """Takes the values of a matrix of the same shape."""
        outputs, inputs = self._padded
        for number, matrix in enumerate(weight.detach().reshape(self._shape).unbind(0)):
            if self.scale is not None:
                scale = matrix.float().abs().amax(dim=1).div_(127.0)
                self.scale[number, : self.outputs] = scale
                matrix = matrix.float().div(scale.clamp_min(1e-30).unsqueeze(1)).round_()
                if self.shift is not None:
                    self.shift[number, : self.outputs] = 128 * matrix.sum(dim=1, dtype=torch.int32)
            pairs, last = self._views(self.values[number])
            if matrix.shape != self._padded:
                matrix = torch.nn.functional.pad(matrix, (0, inputs - matrix.shape[1], 0, outputs - len(matrix)))
            groups, paired = matrix.reshape(outputs, -1, self._together), 2 * PANEL * len(pairs)
            pairs.copy_(groups[:paired].view(-1, 2 * PANEL, *groups.shape[1:]).transpose(1, 2))
            last.copy_(groups[paired:].transpose(0, 1))

    def _views(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """One matrix's values, groups of inputs that lie together last: (pairs of panels [pairs, g, 32, .], the odd last one [g, 16 or 0, .])."""
        outputs, inputs = self._padded
        groups, paired = inputs // self._together, outputs // (2 * PANEL) * 2 * PANEL
        pairs, last = values[: paired * inputs], values[paired * inputs :]
        return pairs.view(-1, groups, 2 * PANEL, self._together), last.view(groups, outputs - paired, self._together)

    def lossy(self, weight: Shaped[Tensor, "..."]) -> bool:
        """Whether weights of this type lose digits in these panels."""
        return self.kind not in (1, 2 if weight.dtype == torch.bfloat16 else 1)

    def dense(self) -> Float[Tensor, "e o i"]:
        """What the panels stand for, in FP32, one matrix after the other."""
        views = [self._views(values) for values in self.values]
        wide = [torch.cat([pairs.transpose(1, 2).flatten(2).flatten(0, 1), last.transpose(0, 1).flatten(1)]) for pairs, last in views]
        out = torch.stack(wide).float()[:, : self.outputs, : self._shape[2]]
        return out if self.scale is None else out * self.scale[:, : self.outputs].unsqueeze(2)

    def relative_error(self, weight: Shaped[Tensor, "... o i"]) -> float:
        """Root of the sum of squared differences from `weight` over that of its squares."""
        wide = weight.detach().float().reshape(self._shape)
        return float((self.dense() - wide).square().sum().sqrt() / wide.square().sum().sqrt().clamp_min(1e-30))


def most_rounded() -> int:
    """Inputs up to which a matrix can be `rounded`; 0 where this machine has no such instructions, or no compiler."""
    library = native.library().library
    return 0 if library is None else library.rq_most_rounded()
