"""Layouts that fit, fastest first, and why the others do not. No torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rorqual.config import ModelConfig
from rorqual.errors import ConfigError
from rorqual.planner.cost import Prediction, predict
from rorqual.planner.hardware import Hardware
from rorqual.planner.layout import Layout, check
from rorqual.planner.memory import Memory, training_memory
from rorqual.planner.schedule import SCHEDULES


@dataclass(frozen=True)
class Candidate:
    """A layout with what is predicted for it."""

    layout: Layout
    memory: Memory
    prediction: Prediction

    @property
    def bubble(self) -> float:
        """Share of the step in which the busiest rank waits."""
        return self.prediction.phases["bubble"] / self.prediction.step_seconds


@dataclass(frozen=True)
class Search:
    """Feasible layouts by step time, and the number of refused ones by reason."""

    feasible: tuple[Candidate, ...]
    refused: dict[str, int]
    nearest: Candidate | None
    """The layout that needs least memory, where none fits."""


def search(
    config: ModelConfig, device: Hardware, gpus: int, *, tokens: float, batch_sequences: int, seq_len: int, recompute: tuple[str, ...],
    price: float | None = None,
) -> Search:  # fmt: skip
    """Tries every pp, ep and schedule on `gpus` devices."""
    feasible, refused, best = [], Counter[str](), None
    for layout in _layouts(gpus):
        try:
            check(layout, config, batch_sequences, gpus)
        except ConfigError as error:
            refused[_reason(str(error))] += 1
            continue
        memory = training_memory(config, device, layout, seq_len, batch_sequences, recompute=recompute)
        if not memory.fits:
            refused["needs more memory than the device has"] += 1
            if best is None or memory.total < best[1].total:
                best = layout, memory
            continue
        prediction, _ = predict(config, device, layout, tokens=tokens, batch_sequences=batch_sequences, seq_len=seq_len, price=price)
        feasible.append(Candidate(layout, memory, prediction))
    nearest = None
    if not feasible and best is not None:
        prediction, _ = predict(config, device, best[0], tokens=tokens, batch_sequences=batch_sequences, seq_len=seq_len, price=price)
        nearest = Candidate(*best, prediction)
    feasible.sort(key=lambda one: (one.prediction.step_seconds, one.memory.total, str(one.layout)))
    return Search(tuple(feasible), dict(refused.most_common()), nearest)


def _layouts(gpus: int) -> list[Layout]:
    divisors = [n for n in range(1, gpus + 1) if gpus % n == 0]
    found = []
    for pp in (n for n in divisors if n <= 128):
        dp = gpus // pp
        for ep in (n for n in divisors if dp % n == 0 and n <= 512):
            found += [Layout(pp, dp, ep, schedule) for schedule in (SCHEDULES if pp > 1 else ("1f1b",))]
    return found


def _reason(message: str) -> str:
    """The kind of a refusal, without its numbers."""
    for words, kind in (
        ("experts cannot be spread", "n_routed_experts not divisible by ep"), ("stages for", "more stages than layers"),
        ("cannot be split over dp", "batch not divisible by dp"), ("even number of ranks", "DualPipe needs an even number of ranks"),
        ("micro-batches", "too few or odd micro-batches for the schedule"), ("no routed experts", "no routed experts to spread"),
    ):  # fmt: skip
        if words in message:
            return kind
    return message
