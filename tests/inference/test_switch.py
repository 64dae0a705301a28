"""Drafts are made while they pay: steps of known cost and acceptance, outliers, and a model whose acceptance changes."""

import pytest

from rorqual.inference.switch import PROBE_MOST, PROBE_STEPS, DraftSwitch


def run(switch: DraftSwitch, steps: int, cost: float, tokens: float, busy: int = 0) -> list[bool]:
    """Plain steps of 1 s and one token; with drafts `cost` s and `tokens` tokens on average. Every `busy`-th step takes 20 s more."""
    ways, owed = [], 0.0
    for number in range(steps):
        way, later = switch.speculates(), switch.speculates(1)
        ways.append(way)
        chosen, owed = switch._chosen, owed % 1 + tokens - 1 if way else owed
        switch.measure(way, (cost if way else 1.0) + (20.0 if busy and number % busy == 0 else 0.0), 1, 1 + int(owed) if way else 1)
        assert later == switch.speculates() or switch._chosen != chosen
    return ways


@pytest.mark.parametrize(
    ("cost", "tokens", "pays"), [(1.5, 2, True), (1.5, 1, False), (1.9, 2, True), (2.1, 2, False), (1.4, 1.25, False), (1.98, 2, False)]
)
@pytest.mark.parametrize("busy", [0, 7])
def test_the_cheaper_way_is_taken(cost, tokens, pays, busy):
    ways = run(DraftSwitch(), 1000, cost, tokens, busy)
    assert ways[:6] == [False] * 3 + [True] * 3
    assert ways.count(pays) > 950


def test_looks_become_rare_and_a_change_is_noticed():
    switch = DraftSwitch()
    ways = run(switch, 3000, 1.9, 1)
    assert 14 < 3000 - ways.count(False) < 25  # 3, then 3 after 128, 256, 512, 1024, ...
    later = run(switch, 4 * PROBE_MOST, 1.5, 2)
    assert all(later[-PROBE_STEPS:]) and later.count(True) > 0.4 * len(later)


def test_the_first_step_is_plain():
    assert DraftSwitch().speculates() is False
