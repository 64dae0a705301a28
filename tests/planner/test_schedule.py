"""Schedules: every piece of work once, in an order that can run; counts that do not work are refused with the next that does."""

from __future__ import annotations

from collections import Counter

import pytest

from rorqual.errors import ConfigError
from rorqual.planner.schedule import SCHEDULES, dualpipe, dualpipev, one_f_one_b, zb1p

CASES = [("1f1b", 1, 1), ("1f1b", 4, 2), ("1f1b", 4, 9), ("zb1p", 1, 3), ("zb1p", 4, 2), ("zb1p", 5, 12), ("dualpipe", 2, 4), ("dualpipe", 4, 8),
         ("dualpipe", 8, 20), ("dualpipev", 1, 2), ("dualpipev", 2, 5), ("dualpipev", 4, 11)]  # fmt: skip


@pytest.mark.parametrize(("name", "ranks", "micro_batches"), CASES)
def test_each_chunk_is_done_exactly_once_where_its_stage_lives(name, ranks, micro_batches):
    schedule = SCHEDULES[name](ranks, micro_batches)
    done = Counter()
    for rank, steps in enumerate(schedule.ranks):
        for op in (op for step in steps for op in step):
            assert schedule.rank_of(op.stage, op.copy) == rank and (op.stage, op.copy) in schedule.stages_of(rank)
            for kind in {"F": "F", "B": "IW", "I": "I", "W": "W"}[op.kind]:
                done[kind, op.stage, op.micro_batch] += 1
    assert done == {(kind, stage, m): 1 for kind in "FIW" for stage in range(schedule.num_stages) for m in range(micro_batches)}


def test_dualpipe_feeds_half_of_the_micro_batches_from_each_end():
    schedule = dualpipe(8, 20)
    copies = {
        op.copy: {o.micro_batch for steps in schedule.ranks for step in steps for o in step if o.copy == op.copy}
        for op in schedule.ranks[0][-1] + schedule.ranks[7][-1]
    }
    assert copies == {0: set(range(0, 20, 2)), 1: set(range(1, 20, 2))}
    assert schedule.stages_of(0) == ((0, 0), (7, 1)) and schedule.stages_of(5) == ((5, 0), (2, 1))
    assert dualpipev(4, 8).stages_of(1) == ((1, 0), (6, 0))


def test_the_first_operations_by_hand():
    def text(steps):
        return " ".join("+".join(f"{op.kind}{op.micro_batch}" for op in step) for step in steps)

    assert text(one_f_one_b(3, 4).ranks[0]) == "F0 F1 F2 B0 F3 B1 B2 B3"
    assert text(one_f_one_b(3, 4).ranks[2]) == "F0 B0 F1 B1 F2 B2 F3 B3"
    assert text(zb1p(3, 4).ranks[2]) == "F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3"
    assert text(zb1p(3, 4).ranks[0]) == "F0 F1 F2 I0 W0 F3 I1 W1 I2 W2 I3 W3"
    assert text(dualpipe(2, 4).ranks[0]) == "F0 F1 F2 B1 F3+B0 B3 I2 W2"


@pytest.mark.parametrize(
    ("name", "ranks", "micro_batches", "words"),
    [
        ("dualpipe", 3, 8, r"even number of ranks, not 3; use 4"),
        ("dualpipe", 4, 9, r"even number of micro-batches, at least 8, not 9; use 10"),
        ("dualpipe", 4, 6, r"at least 8, not 6; use 8"),
        ("dualpipev", 4, 7, r"at least 8 micro-batches, not 7; use 8"),
        ("1f1b", 0, 4, "at least one rank"),
        ("zb1p", 2, 0, "one micro-batch"),
    ],
)
def test_counts_that_do_not_work_are_refused(name, ranks, micro_batches, words):
    with pytest.raises(ConfigError, match=words):
        SCHEDULES[name](ranks, micro_batches)
