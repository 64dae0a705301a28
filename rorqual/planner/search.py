"""Layouts that fit, fastest first, and why the others do not. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rorqual.config import ModelConfig
from rorqual.errors import ConfigError
from rorqual.planner.activations import POLICIES
from rorqual.planner.cost import Prediction, predict
from rorqual.planner.hardware import Hardware
from rorqual.planner.layout import Layout, check
from rorqual.planner.memory import Memory, training_memory
from rorqual.planner.schedule import SCHEDULES
from rorqual.planner.step import least_seconds

_MOST_GPUS: Final = 65_536


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
    config: ModelConfig, device: Hardware, gpus: int, *, tokens: float, batch_sequences: int, seq_len: int, recompute: tuple[str, ...] = POLICIES,
    moments: str = "bf16", price: float | None = None, best_only: bool = False,
    schedules: Sequence[str] = tuple(SCHEDULES),
) -> Search:  # fmt: skip
    """Tries every pp and ep on `gpus` devices with each of `schedules`, and shared-out parameters without a pipeline.

    `best_only` stops simulating where a lower bound shows that no other layout can be faster; the first result is the same.
    """
    refused: Counter[str] = Counter()
    fitting: list[tuple[float, Layout, Memory]] = []
    smallest: tuple[Layout, Memory] | None = None
    for layout in _layouts(gpus, schedules):
        try:
            check(layout, config, batch_sequences, gpus)
        except ConfigError as error:
            refused[_reason(str(error))] += 1
            continue
        memory = training_memory(config, device, layout, seq_len, batch_sequences, recompute=recompute, moments=moments)
        if memory.fits:
            fitting.append((least_seconds(config, device, layout, seq_len, batch_sequences), layout, memory))
            continue
        refused["needs more memory than the device has"] += 1
        if smallest is None or memory.total < smallest[1].total:
            smallest = layout, memory

    def candidate(layout: Layout, memory: Memory) -> Candidate:
        found, _ = predict(config, device, layout, tokens=tokens, batch_sequences=batch_sequences, seq_len=seq_len, price=price)
        return Candidate(layout, memory, found)

    feasible: list[Candidate] = []
    fastest = float("inf")
    for least, layout, memory in sorted(fitting, key=lambda one: (one[0], str(one[1]), one[1].schedule)):
        if best_only and least > fastest:
            break
        feasible.append(candidate(layout, memory))
        fastest = min(fastest, feasible[-1].prediction.step_seconds)
    feasible.sort(key=lambda one: (one.prediction.step_seconds, one.memory.total, str(one.layout), one.layout.schedule))
    nearest = None if feasible or smallest is None else candidate(*smallest)
    return Search(tuple(feasible[:1] if best_only else feasible), dict(refused.most_common()), nearest)


def enough(
    config: ModelConfig, device: Hardware, gpus: int, *, batch_sequences: int, seq_len: int, recompute: tuple[str, ...] = POLICIES, moments: str = "bf16"
) -> tuple[int, Layout] | None:  # fmt: skip
    """The smallest doubling of `gpus` (up to 65,536) on which some layout runs and fits, with that layout; None where there is none."""
    while gpus <= _MOST_GPUS:
        for layout in _layouts(gpus, tuple(SCHEDULES)):
            try:
                check(layout, config, batch_sequences, gpus)
            except ConfigError:
                continue
            if training_memory(config, device, layout, seq_len, batch_sequences, recompute=recompute, moments=moments).fits:
                return gpus, layout
        gpus *= 2
    return None


def _layouts(gpus: int, schedules: Sequence[str]) -> list[Layout]:
    divisors = [n for n in range(1, gpus + 1) if gpus % n == 0]
    found = []
    for pp in (n for n in divisors if n <= 128):
        dp = gpus // pp
        for ep in (n for n in divisors if dp % n == 0 and n <= 512):
            if pp == 1:
                found += [Layout(1, dp, ep, "1f1b", zero) for zero in ((1, 3) if dp > 1 else (1,))]
            else:
                found += [Layout(pp, dp, ep, schedule) for schedule in schedules]
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
