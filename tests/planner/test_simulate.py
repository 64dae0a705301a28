"""The simulator: bubbles of table 2, memory, messages, and what happens to a schedule that cannot run."""

from __future__ import annotations

import pytest

from rorqual.errors import ConfigError
from rorqual.planner.schedule import SCHEDULES, Op, Schedule, dualpipe, one_f_one_b
from rorqual.planner.simulate import Costs, simulate

F, B, W = 1.0, 2.0, 1.0


@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 4), (4, 8), (4, 20), (8, 20), (16, 40)])
@pytest.mark.parametrize("pair", [3.0, 2.4])
def test_bubbles_equal_the_closed_forms(ranks, micro_batches, pair):
    """Report table 2; with F = 1, B = 2, W = 1 and PP = 16: 45, 15, 14, and 9.8 where overlap makes a pair cost 2.4."""
    costs = Costs(F, B, W, pair)
    dual = (ranks / 2 - 1) * (pair + B - 3 * W)
    want = {"1f1b": (ranks - 1) * (F + B), "zb1p": (ranks - 1) * (F + B - 2 * W), "dualpipe": dual}
    for name, bubble in want.items():
        found = simulate(SCHEDULES[name](ranks, micro_batches), costs)
        assert max(found.bubble) == pytest.approx(bubble), name
        assert pair == 2.4 or min(found.bubble) == pytest.approx(bubble), name
    folded = simulate(SCHEDULES["dualpipev"](ranks // 2, micro_batches), costs)
    assert max(folded.bubble) == pytest.approx(dual)


def test_the_table_at_sixteen_stages():
    at = {name: max(simulate(SCHEDULES[name](16, 64), Costs(F, B, W, 2.4)).bubble) for name in ("1f1b", "zb1p", "dualpipe")}
    assert at == pytest.approx({"1f1b": 45.0, "zb1p": 15.0, "dualpipe": 9.8})


def test_activations_in_flight():
    """Table 2: PP for 1F1B and ZB1P (the first stage), PP + 1 for DualPipe; they do not grow with the micro-batches."""
    for micro_batches in (16, 48):
        assert simulate(SCHEDULES["1f1b"](8, micro_batches), Costs(F, B, W)).peak_in_flight == tuple(range(8, 0, -1))
        assert max(simulate(SCHEDULES["zb1p"](8, micro_batches), Costs(F, B, W)).peak_in_flight) == 8
        assert max(simulate(dualpipe(8, micro_batches), Costs(F, B, W, 3.0)).peak_in_flight) == 9


def test_messages_between_ranks_delay_the_next_stage_only():
    found = simulate(one_f_one_b(3, 1), Costs(F, B, W, send=0.5))
    starts = [[(event.step[0].kind, event.start) for event in rank] for rank in found.events]
    assert starts == [[("F", 0.0), ("B", 9.0)], [("F", 1.5), ("B", 6.5)], [("F", 3.0), ("B", 4.0)]] and found.seconds == 11.0
    same_rank = simulate(SCHEDULES["dualpipev"](1, 2), Costs(F, B, W, send=5.0))
    assert max(same_rank.bubble) == 0.0  # both stages on one rank: nothing is sent


def test_uneven_stages():
    sizes = [4, 4, 3]
    found = simulate(one_f_one_b(3, 6), Costs(F, B, W, scale=lambda stage: sizes[stage] / 4))
    assert [busy for busy in found.busy] == pytest.approx([6 * 3 * size / 4 for size in sizes])


def test_a_trace_has_every_step():
    found = simulate(dualpipe(4, 8), Costs(F, B, W, 2.4))
    trace = found.chrome_trace()
    assert len(trace) == sum(map(len, found.schedule.ranks)) and {entry["ph"] for entry in trace} == {"X"}
    assert max(entry["ts"] + entry["dur"] for entry in trace) == pytest.approx(found.seconds * 1e6)
    assert any(entry["cat"] == "FB" and entry["dur"] == pytest.approx(2.4e6) for entry in trace)


def test_a_schedule_that_waits_for_itself_is_refused():
    broken = Schedule("1f1b", 2, 1, (((Op("B", 0, 0),), (Op("F", 0, 0),)), ((Op("F", 1, 0),), (Op("B", 1, 0),))))
    with pytest.raises(ConfigError, match="rank 0 waits for ever to start B0@0, and 1 more"):
        simulate(broken, Costs(F, B, W))


@pytest.mark.parametrize("costs", [(-1, 2, 1), (1, float("nan"), 1), (1, 1, 2)])
def test_costs_that_make_no_sense_are_refused(costs):
    with pytest.raises(ConfigError):
        Costs(*costs)


@pytest.mark.parametrize("name", ["1f1b", "zb1p", "dualpipe"])
@pytest.mark.slow
def test_a_large_pipeline(name):
    """128 stages x 1,024 micro-batches, in seconds (about 1 s here; the time is not asserted, the work is)."""
    found = simulate(SCHEDULES[name](128, 1024), Costs(F, B, W))
    bubble = {"1f1b": 127 * (F + B), "zb1p": 127 * (F + B - 2 * W), "dualpipe": 63 * (F + B + B - 3 * W)}[name]
    assert found.seconds == pytest.approx(1024 * (F + B) + bubble) and max(found.bubble) == pytest.approx(bubble)


def test_memory_over_time_by_hand():
    """Two ranks, two micro-batches: the first rank holds 1, then 2, and gives them back one by one."""
    held = simulate(one_f_one_b(2, 2), Costs(F, B, W)).in_flight()
    assert held[0] == ((0.0, 1), (1.0, 2), (6.0, 1), (9.0, 0))
    assert held[1] == ((1.0, 1), (4.0, 0), (4.0, 1), (7.0, 0))
