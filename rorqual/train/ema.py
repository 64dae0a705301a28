"""Exponential moving average of the parameters, off the hot path (report section 3.2.3).

    ema <- ema + (w - ema) (1 - d^k) / (1 - d^(k j))        at every k-th step, j = 1, 2, ... counting the updates

The report keeps the average in CPU memory and updates it after each step; its decay is not published. Here `decay` is per
step, the average is taken every k = `interval(decay)` steps, so that its cost per step is a k-th of one pass over the
weights, and the division removes the pull of the start (the first update is a plain copy). Which step updates is a
function of the step number alone: a resumed run averages exactly what an uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def interval(decay: float) -> int:
    """Steps between updates: as many as keep decay^k at 0.9 or more, 1 at least (0.99: 10 steps, 0.999: 105 steps)."""
    k = 1
    while decay ** (k + 1) >= 0.9 and k < 1000:
        k += 1
    return k


class EMA:
    """The average of named FP32 tensors, held in CPU memory."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay, self.every, self.updates = decay, interval(decay), 0
        self.average = {name: torch.zeros(w.shape, dtype=torch.float32) for name, w in weights.items()}

    @torch.no_grad()
    def update(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Takes the weights as they are after `step` steps into the average, if this step's turn has come."""
        if step % self.every:
            return
        self.updates += 1
        d = self.decay**self.every
        share = (1 - d) / (1 - d**self.updates)
        averages = list(self.average.values())
        torch._foreach_lerp_(averages, [weights[name].detach().to("cpu", torch.float32) for name in self.average], share)

    @contextmanager
    def applied(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Puts the average in the place of the parameters for as long as the context lasts; buffers stay the current ones."""
        kept = {name: p.detach().clone() for name, p in parameters.items()}
        try:
            with torch.no_grad():
                for name, p in parameters.items():
                    p.copy_(self.average[name])
            yield
        finally:
            with torch.no_grad():
                for name, p in parameters.items():
                    p.copy_(kept[name])

    def state(self) -> dict[str, Tensor]:
        """The averages by parameter name: copy into them to restore."""
        return dict(self.average)
