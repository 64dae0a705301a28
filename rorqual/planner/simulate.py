"""A discrete-event simulator of pipeline schedules: when each rank does what, where it waits, what it holds (report section 3.2.1).

Ranks work through their lists in order. A forward waits for the stage before, a backward for the stage behind, a weight gradient
for its own input gradient; between ranks a message takes `send` seconds. With equal costs and `send` 0 the idle time is the
closed form of the report's table 2. Times in seconds (or any unit: results have the unit of the costs). No torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from rorqual.errors import ConfigError
from rorqual.planner.schedule import Op, Schedule, Step


class CostModel(Protocol):
    """What the simulator asks for: seconds of a step, and of a message to another rank."""

    @property
    def send(self) -> float:
        """Seconds from the end of a chunk until another rank can use it."""
        ...

    def of(self, step: Step) -> float:
        """Seconds that a step keeps its rank busy."""
        ...


@dataclass(frozen=True)
class Costs:
    """Seconds of one chunk: forward, whole backward, its weight-gradient part, an overlapped pair, one message to another rank.

    `scale` gives a stage's share of these, so that 61 layers on 16 stages have 4 or 3 (default: all stages alike).
    """

    forward: float
    backward: float
    weight: float
    pair: float | None = None
    send: float = 0.0
    scale: Callable[[int], float] = field(default=lambda stage: 1.0)

    def __post_init__(self) -> None:
        for name in ("forward", "backward", "weight", "send"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"cost {name} ({getattr(self, name)}) must be a number of at least 0")
        if self.weight > self.backward:
            raise ConfigError(f"the weight gradient ({self.weight}) is part of the backward ({self.backward}) and cannot cost more")

    def of(self, step: Step) -> float:
        """Seconds that a step keeps its rank busy; an overlapped pair costs `pair`, by default the sum of the two."""
        alone = {"F": self.forward, "B": self.backward, "I": self.backward - self.weight, "W": self.weight}
        each = [alone[op.kind] * self.scale(op.stage) for op in step]
        if len(step) == 1 or self.pair is None:
            return sum(each)
        return self.pair * sum(each) / (self.forward + self.backward) if self.forward + self.backward else 0.0


@dataclass(frozen=True)
class Event:
    """One step as it ran: rank, operations, start and end."""

    rank: int
    step: Step
    start: float
    end: float


@dataclass(frozen=True)
class Simulation:
    """All steps in order of their start per rank, and what follows from them."""

    schedule: Schedule
    events: tuple[tuple[Event, ...], ...]
    seconds: float
    """From the first start to the last end of any rank."""

    @property
    def busy(self) -> tuple[float, ...]:
        """Seconds of work of each rank."""
        return tuple(sum(event.end - event.start for event in rank) for rank in self.events)

    @property
    def bubble(self) -> tuple[float, ...]:
        """Seconds in which each rank has nothing to do."""
        return tuple(self.seconds - busy for busy in self.busy)

    def in_flight(self) -> tuple[tuple[tuple[float, int], ...], ...]:
        """Per rank, (time, micro-batches whose activations it holds) after each change: from a forward's start to its last gradient's end."""
        return tuple(_held(rank) for rank in self.events)

    @property
    def peak_in_flight(self) -> tuple[int, ...]:
        """The most (stage, micro-batch) activations that each rank holds at once."""
        return tuple(max((count for _, count in rank), default=0) for rank in self.in_flight())

    def chrome_trace(self) -> list[dict[str, object]]:
        """Events for chrome://tracing or Perfetto: one process, a thread for each rank, microseconds."""
        return [
            {"name": _label(event.step), "cat": _kind(event.step), "ph": "X", "pid": 0, "tid": event.rank, "ts": event.start * 1e6, "dur": (event.end - event.start) * 1e6}
            for rank in self.events for event in rank
        ]  # fmt: skip


def simulate(schedule: Schedule, costs: CostModel) -> Simulation:
    """Runs a schedule; ConfigError if its ranks wait for each other for ever, with the first steps that cannot start."""
    finished: dict[tuple[str, int, int, int], tuple[float, int]] = {}
    waiting: dict[tuple[str, int, int, int], list[int]] = {}
    clock, place = [0.0] * schedule.num_ranks, [0] * schedule.num_ranks
    events: list[list[Event]] = [[] for _ in schedule.ranks]
    ready = list(range(schedule.num_ranks))
    while ready:
        rank = ready.pop()
        steps = schedule.ranks[rank]
        while place[rank] < len(steps):
            step = steps[place[rank]]
            start = clock[rank]
            for need in (need for op in step for need in _needs(op, schedule.num_stages)):
                if need not in finished:
                    waiting.setdefault(need, []).append(rank)
                    break
                when, where = finished[need]
                start = max(start, when + (costs.send if where != rank else 0.0))
            else:
                clock[rank] = start + costs.of(step)
                events[rank].append(Event(rank, step, start, clock[rank]))
                place[rank] += 1
                for op in step:
                    finished[_key(op)] = clock[rank], rank
                    ready += waiting.pop(_key(op), ())
                continue
            break
    stuck = [rank for rank, steps in enumerate(schedule.ranks) if place[rank] < len(steps)]
    if stuck:
        step = schedule.ranks[stuck[0]][place[stuck[0]]]
        raise ConfigError(
            f"the schedule stops: rank {stuck[0]} waits for ever to start {_label(step)}, and {len(stuck) - 1} more ranks wait"
        )
    return Simulation(schedule, tuple(map(tuple, events)), max(clock))


def _key(op: Op) -> tuple[str, int, int, int]:
    """What others wait for: an input gradient is there after I as after B."""
    return ("I" if op.kind == "B" else op.kind, op.stage, op.micro_batch, op.copy)


def _needs(op: Op, num_stages: int) -> list[tuple[str, int, int, int]]:
    if op.kind == "F":
        return [("F", op.stage - 1, op.micro_batch, op.copy)] if op.stage else []
    if op.kind == "W":
        return [("I", op.stage, op.micro_batch, op.copy)]
    behind = [("I", op.stage + 1, op.micro_batch, op.copy)] if op.stage + 1 < num_stages else []
    return [("F", op.stage, op.micro_batch, op.copy), *behind]


def _held(rank: tuple[Event, ...]) -> tuple[tuple[float, int], ...]:
    changes: list[tuple[float, int]] = []
    for event in rank:
        for op in event.step:
            if op.kind == "F":
                changes.append((event.start, 1))
            elif op.kind in "BW":
                changes.append((event.end, -1))
    held, out = 0, []
    for when, change in sorted(changes):  # at equal times the release comes first
        held += change
        out.append((when, held))
    return tuple(out)


def _label(step: Step) -> str:
    return "+".join(f"{op.kind}{op.micro_batch}" + (f"@{op.stage}") for op in step)


def _kind(step: Step) -> str:
    return "".join(op.kind for op in step)
