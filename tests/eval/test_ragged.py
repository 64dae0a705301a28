"""Sequences as a tree: what they share stands once, and the states are those of each sequence alone."""

from __future__ import annotations

import pytest
import torch

from rorqual.eval.ragged import Ragged, common
from tests.eval import small
from tests.inference.models import prompt

SHARED = prompt(30, 1)
SEQUENCES = [SHARED + prompt(20, 2), prompt(9, 3), SHARED + prompt(20, 2)[:8] + prompt(5, 4), SHARED, SHARED[:12] + prompt(40, 5), SHARED]


@pytest.mark.parametrize(("one", "other", "expected"), [([1, 2, 3], [1, 2, 4], 2), ([1, 2], [1, 2, 3], 2), ([5], [6], 0), ([], [1], 0), ([1] * 9, [1] * 7 + [2, 1], 7)])  # fmt: skip
def test_what_both_begin_with(one, other, expected):
    assert common(one, other) == common(other, one) == expected


def test_every_common_beginning_stands_once():
    ragged = Ragged.of(SEQUENCES)
    assert len(ragged.ids) == len({tuple(one[: place + 1]) for one in SEQUENCES for place in range(len(one))})
    for number, one in enumerate(SEQUENCES):
        places = ragged.places(number, 0, len(one))
        assert [ragged.ids[place] for place in places] == one and [ragged.positions[place] for place in places] == list(range(len(one)))
        assert ragged.places(number, 3, 7) == places[3:7]
    assert ragged.paths[3] == ragged.paths[5]
    assert sorted(place for path in ragged.tree.paths for place in range(path[-1][0], sum(path[-1]))) == list(range(len(ragged.ids)))


@torch.no_grad()
@pytest.mark.parametrize("scored", [[[8, 9], [], [40], [], [11, 12, 13], [29]], [list(range(5, 30)), [8], [], [], list(range(30)), []]], ids=["few", "many"])  # fmt: skip
def test_states_are_those_of_each_sequence_alone(scored):
    model, ragged = small.model(), Ragged.of(SEQUENCES)
    places = [[ragged.places(number, at, at + 1)[0] for at in some] for number, some in enumerate(scored)]
    found = ragged.states(model, places)
    expected = [model(torch.tensor([one])).hidden[0, some] for one, some in zip(SEQUENCES, scored, strict=True)]
    torch.testing.assert_close(found, torch.cat(expected), atol=2e-5, rtol=2e-5)
