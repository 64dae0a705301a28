"""Pipeline schedules as lists of operations: 1F1B, ZB1P, DualPipe, DualPipeV (report section 3.2.1, table 2). No torch.

A schedule says in which order each rank works, never when; the simulator (simulate.py) finds the times and a trainer executes
the same lists. Kinds of work on one (stage, micro-batch):

    F   forward                       B   whole backward
    I   input gradient only           W   weight gradient, put off

A step is one operation, or a forward and a backward that run together so that one hides the other's communication. Stages are
numbered along the model; a rank may hold several. DualPipe feeds micro-batches from both ends: rank r holds stages r and P-1-r
of two copies of the model, so that parameters are held twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from rorqual.errors import ConfigError


class Op(NamedTuple):
    """One piece of work. `copy` is the model copy (DualPipe's direction), 0 for all other schedules."""

    kind: str
    stage: int
    micro_batch: int
    copy: int = 0


Step = tuple[Op, ...]


@dataclass(frozen=True)
class Schedule:
    """What each rank does in order. `num_stages` pipeline stages per model copy; `ranks[r]` is rank r's list of steps."""

    name: str
    num_stages: int
    num_micro_batches: int
    ranks: tuple[tuple[Step, ...], ...]

    @property
    def num_ranks(self) -> int:
        """Devices in the pipeline."""
        return len(self.ranks)

    def rank_of(self, stage: int, copy: int = 0) -> int:
        """Rank that holds a stage."""
        if self.name == "dualpipe" and copy == 1:
            return self.num_ranks - 1 - stage
        if self.name == "dualpipev" and stage >= self.num_ranks:
            return 2 * self.num_ranks - 1 - stage
        return stage

    def stages_of(self, rank: int) -> tuple[tuple[int, int], ...]:
        """(stage, copy) pairs that a rank holds."""
        copies = range(2 if self.name == "dualpipe" else 1)
        return tuple((stage, copy) for copy in copies for stage in range(self.num_stages) if self.rank_of(stage, copy) == rank)


def one_f_one_b(num_ranks: int, num_micro_batches: int) -> Schedule:
    """1F1B: as many forwards ahead as stages follow, then one forward, one backward; bubble (P-1)(F+B)."""
    check_counts("1f1b", num_ranks, num_micro_batches)

    def rank(r: int) -> Iterator[Step]:
        ahead = min(num_ranks - 1 - r, num_micro_batches)
        for m in range(ahead):
            yield (Op("F", r, m),)
        for m in range(num_micro_batches):
            if m + ahead < num_micro_batches:
                yield (Op("F", r, m + ahead),)
            yield (Op("B", r, m),)

    return Schedule("1f1b", num_ranks, num_micro_batches, tuple(tuple(rank(r)) for r in range(num_ranks)))


def zb1p(num_ranks: int, num_micro_batches: int) -> Schedule:
    """ZB1P: 1F1B's order with the backward split; weight gradients put off by as many micro-batches as the rank's number.

    What rank r puts off fills the gaps in which it would wait for input gradients at the end; bubble (P-1)(F+B-2W), and no rank
    keeps more than P micro-batches.
    """
    check_counts("zb1p", num_ranks, num_micro_batches)

    def rank(r: int) -> Iterator[Step]:
        ahead = min(num_ranks - 1 - r, num_micro_batches)
        late: deque[int] = deque()
        for m in range(ahead):
            yield (Op("F", r, m),)
        for m in range(num_micro_batches):
            if m + ahead < num_micro_batches:
                yield (Op("F", r, m + ahead),)
            yield (Op("I", r, m),)
            late.append(m)
            if len(late) > r or m + ahead >= num_micro_batches:
                yield (Op("W", r, late.popleft()),)
        for m in late:
            yield (Op("W", r, m),)

    return Schedule("zb1p", num_ranks, num_micro_batches, tuple(tuple(rank(r)) for r in range(num_ranks)))


class _Rank:
    """Writes one rank's list: counters for both directions and the queue of weight gradients put off."""

    def __init__(self, stages: tuple[Callable[[int], Op], Callable[[int], Op]]) -> None:
        self.steps: list[Step] = []
        self._make = stages  # micro-batch number of that direction -> an Op with its stage and copy
        self._done = {(kind, side): 0 for kind in "FB" for side in (0, 1)}
        self._late: deque[Op] = deque()

    def _next(self, kind: str, side: int) -> Op:
        number = self._done[kind, side]
        self._done[kind, side] = number + 1
        return self._make[side](number)._replace(kind=kind)

    def forward(self, side: int) -> None:
        """The next forward of a direction."""
        self.steps.append((self._next("F", side),))

    def backward(self, side: int, put_off: bool = False) -> None:
        """The next backward; with `put_off` its weight gradient goes to the queue."""
        op = self._next("B", side)
        if put_off:
            self._late.append(op._replace(kind="W"))
            op = op._replace(kind="I")
        self.steps.append((op,))

    def weight(self) -> None:
        """The oldest weight gradient that was put off."""
        self.steps.append((self._late.popleft(),))

    def together(self, forward_side: int) -> None:
        """A forward of one direction and a backward of the other, overlapped."""
        self.steps.append((self._next("F", forward_side), self._next("B", 1 - forward_side)))


def _bidirectional(rank: _Rank, q: int, h: int, pairs: int) -> tuple[Step, ...]:
    """DualPipe's eight phases for a rank q places from its end, h - 1 of them the middle; `pairs` rounds of two overlapped pairs."""
    for _ in range(2 * (h - q - 1)):
        rank.forward(0)
    for _ in range(q + 1):
        rank.forward(0)
        rank.forward(1)
    for _ in range(h - q - 1):
        rank.backward(1, put_off=True)
        rank.weight()
        rank.forward(1)
    for number in range(pairs):
        if number == 0 and q == h - 1:  # the middle ranks start apart, which shortens the bubble
            rank.forward(0)
            rank.backward(1)
        else:
            rank.together(0)
        rank.together(1)
    for _ in range(h - q - 1):
        rank.backward(1)
        rank.together(1)
    late = False
    for number in range(q + 1):
        late = late or (number == (q + 1) // 2 and q % 2 == 1)
        rank.backward(1, put_off=late)
        late = late or (number == (q + 1) // 2 and q % 2 == 0)
        rank.backward(0, put_off=late)
    for _ in range(h - q - 1):
        rank.weight()
        rank.backward(0, put_off=True)
    for _ in range(q + 1):
        rank.weight()
    return tuple(rank.steps)


def dualpipe(num_ranks: int, num_micro_batches: int) -> Schedule:
    """DualPipe: half of the micro-batches from each end; bubble (P/2-1)(F&B+B-3W), twice the parameters, P+1 activations."""
    check_counts("dualpipe", num_ranks, num_micro_batches)
    h = num_ranks // 2

    def rank(r: int) -> tuple[Step, ...]:
        q, near = min(r, num_ranks - 1 - r), int(r >= h)
        far = 1 - near
        sides = (
            lambda m: Op("F", q, 2 * m + near, near),
            lambda m: Op("F", num_ranks - 1 - q, 2 * m + far, far),
        )
        return _bidirectional(_Rank(sides), q, h, num_micro_batches // 2 - num_ranks + q + 1)

    return Schedule("dualpipe", num_ranks, num_micro_batches, tuple(rank(r) for r in range(num_ranks)))


def dualpipev(num_ranks: int, num_micro_batches: int) -> Schedule:
    """DualPipeV: DualPipe folded at its middle: rank r holds stages r and 2P-1-r of one model, so no parameters twice.

    For S = 2P stages the bubble is DualPipe's at S ranks.
    """
    check_counts("dualpipev", num_ranks, num_micro_batches)

    def rank(r: int) -> tuple[Step, ...]:
        sides = (lambda m: Op("F", r, m), lambda m: Op("F", 2 * num_ranks - 1 - r, m))
        return _bidirectional(_Rank(sides), r, num_ranks, num_micro_batches - 2 * num_ranks + r + 1)

    return Schedule("dualpipev", 2 * num_ranks, num_micro_batches, tuple(rank(r) for r in range(num_ranks)))


SCHEDULES: Final[dict[str, Callable[[int, int], Schedule]]] = {
    "1f1b": one_f_one_b,
    "zb1p": zb1p,
    "dualpipe": dualpipe,
    "dualpipev": dualpipev,
}
"""By the name that the command line takes: (ranks, micro-batches) to a schedule."""


def check_counts(name: str, num_ranks: int, num_micro_batches: int) -> None:
    """ConfigError, with the nearest number that works, for counts that a schedule cannot take; nothing is built."""
    if num_ranks < 1 or num_micro_batches < 1:
        raise ConfigError(f"a pipeline needs at least one rank and one micro-batch, not {num_ranks} and {num_micro_batches}")
    least = 2 * num_ranks
    if name == "dualpipe":
        if num_ranks % 2:
            raise ConfigError(f"DualPipe needs an even number of ranks, not {num_ranks}; use {num_ranks + 1}")
        if num_micro_batches % 2 or num_micro_batches < least:
            near = max(num_micro_batches + num_micro_batches % 2, least)
            raise ConfigError(f"DualPipe needs an even number of micro-batches, at least {least}, not {num_micro_batches}; use {near}")
    if name == "dualpipev" and num_micro_batches < least:
        raise ConfigError(f"DualPipeV on {num_ranks} ranks needs at least {least} micro-batches, not {num_micro_batches}; use {least}")
