"""Budget, fairness, preemption of the latest, shared prompts: the scheduler alone, without a model."""

from __future__ import annotations

from rorqual.inference.blocks import BlockPool
from rorqual.inference.params import SamplingParams
from rorqual.inference.scheduler import Scheduler, Sequence


def _sequence(name: str, arrival: int, length: int, first: int = 0) -> Sequence:
    tokens = list(range(first, first + length))
    return Sequence(name, 0, arrival, tokens, length, length + 100, SamplingParams(), frozenset())


def _run(scheduler: Scheduler, drafts: int = 0) -> dict[str, int]:
    """Tokens of each sequence in this step; a finished prompt gets a token."""
    out = {}
    for work in scheduler.schedule(drafts):
        s = work.sequence
        out[s.request_id] = work.end - s.computed + work.num_drafts
        s.computed = work.end
        if work.end == len(s.tokens):
            s.tokens.append(0)
    return out


def test_decodes_go_first_and_a_long_prompt_starves_nobody():
    scheduler = Scheduler(BlockPool(64, 16), max_num_batched_tokens=20)
    scheduler.add([_sequence("a", 0, 4)])
    assert _run(scheduler) == {"a": 4}
    scheduler.add([_sequence("long", 1, 200, 300), _sequence("short", 2, 6, 600)])
    assert _run(scheduler) == {"a": 1, "short": 6, "long": 13}
    assert _run(scheduler, 2) == {"a": 3, "short": 3, "long": 14}


def test_more_rows_than_budget_take_turns():
    scheduler = Scheduler(BlockPool(64, 16), max_num_batched_tokens=2)
    scheduler.add([_sequence(name, number, 1, 50 * number) for number, name in enumerate("abc")])
    seen: set[str] = set()
    for _ in range(4):
        step = _run(scheduler)
        assert sum(step.values()) <= 2
        seen |= set(step)
    assert seen == set("abc")


def test_the_latest_gives_way_and_comes_back():
    scheduler = Scheduler(BlockPool(3, 4), max_num_batched_tokens=64)
    scheduler.add([_sequence("a", 0, 4), _sequence("b", 1, 4, 100)])
    _run(scheduler)
    _run(scheduler)
    assert scheduler.preemptions == 1 and [s.request_id for s in scheduler.running] == ["a"]
    assert [s.request_id for s in scheduler.waiting] == ["b"] and scheduler.waiting[0].computed == 0
    scheduler.remove(scheduler.running[0])
    assert _run(scheduler) == {"b": 5}
