"""Expert placement: the published example to the digit, equal counts everywhere, balance never worse than without copies."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from rorqual.errors import ConfigError
from rorqual.planner.eplb import pack, place_experts, replicate

LOADS = [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]]


def test_the_published_example_to_the_digit():
    found = place_experts(LOADS, num_replicas=16, num_groups=4, num_nodes=2, num_gpus=8)
    assert [list(one.logical) for one in found] == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]
    assert found[0].places[5] == (0, 2) and found[0].places[3] == (6,) and found[0].copies == (1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1)


def test_balance_before_and_after():
    """Without copies the heaviest GPU of two experts decides; the copies of the example take a third off it."""
    before = place_experts([LOADS[0]], 12, 4, 2, 4)[0]
    after = place_experts([LOADS[0]], 16, 4, 2, 4)[0]
    assert sum(after.gpu_loads(LOADS[0])) == pytest.approx(sum(LOADS[0]))
    assert after.imbalance(LOADS[0]) < before.imbalance(LOADS[0]) < 1.3
    assert place_experts([[1.0] * 8], 8, 1, 1, 4)[0].imbalance([1.0] * 8) == 1.0
    assert place_experts([[0.0] * 8], 8, 1, 1, 4)[0].imbalance([0.0] * 8) == 1.0


@pytest.mark.parametrize("seed", range(20))
def test_every_expert_has_a_place_and_every_gpu_as_many(seed):
    draw = random.Random(seed)
    gpus, groups, nodes = draw.choice([(8, 4, 2), (8, 3, 2), (16, 8, 4), (4, 1, 1)])
    experts = groups * draw.choice([2, 4, 8])
    replicas = -(-experts // gpus) * gpus + gpus * draw.randrange(3)
    load = [draw.expovariate(1.0) for _ in range(experts)]
    found = place_experts([load], replicas, groups, nodes, gpus)[0]
    assert len(found.logical) == replicas and sorted(set(found.logical)) == list(range(experts))
    assert Counter(found.logical) == {expert: count for expert, count in enumerate(found.copies)}
    if groups % nodes == 0:  # a group stays on its node
        size, per_node = experts // groups, replicas // nodes
        homes = {expert // size: set() for expert in range(experts)}
        for place, expert in enumerate(found.logical):
            homes[expert // size].add(place // per_node)
        assert all(len(nodes_of) == 1 for nodes_of in homes.values())


def test_groups_that_do_not_divide_over_nodes_are_placed_globally():
    assert place_experts(LOADS, 16, 3, 2, 8) == place_experts(LOADS, 16, 1, 1, 8)


def test_packing_and_copies_by_hand():
    assert pack([5, 4, 3, 3, 2, 1], 2) == [[0, 3, 5], [1, 2, 4]]
    assert pack([1, 9, 5], 3) == [[0], [1], [2]]
    assert replicate([10, 1, 6], 6) == ([0, 1, 2, 0, 2, 0], [3, 1, 2])


@pytest.mark.parametrize(
    ("loads", "numbers", "words"),
    [
        ([], (4, 1, 1, 2), "at least one layer"),
        ([[1, 2], [1]], (4, 1, 1, 2), "the same number of experts"),
        ([[1, float("nan")]], (2, 1, 1, 2), "finite"),
        ([[1, -1]], (2, 1, 1, 2), "0 or more"),
        ([[1, 2, 3]], (2, 1, 1, 2), r"num_replicas \(2\) must be at least the number of experts \(3\)"),
        ([[1, 2, 3]], (5, 1, 1, 2), r"num_replicas \(5\) must be divisible by num_gpus \(2\); use 6"),
        ([[1, 2, 3, 4]], (6, 1, 2, 3), r"num_gpus \(3\) must be divisible by num_nodes \(2\)"),
        ([[1, 2, 3]], (4, 2, 1, 2), r"the number of experts \(3\) must be divisible by num_groups \(2\)"),
        ([[1, 2]], (2, 0, 1, 2), "num_groups"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(loads, numbers, words):
    with pytest.raises(ConfigError, match=words):
        place_experts(loads, *numbers)
