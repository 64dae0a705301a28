"""Groups survive packing to the bit, with and without what is optional; a checkpoint can make room for them from JSON alone."""

import json
import math

import pytest
import torch

from rorqual.posttrain import buffer, update
from tests.posttrain.scenes import config, groups, trainee


def _same(one, other):
    return (one is None and other is None) or (one.dtype == other.dtype and torch.equal(one, other))


@pytest.mark.parametrize("filtered", [False, True])
def test_groups_survive_to_the_bit(filtered):
    settings = config(top_k=4) if filtered else config()
    subject = trainee(settings=settings)
    held = update.prepare(subject, groups(subject.model, settings, ((1.0, 0.0, math.nan, 1.0), (0.0, 0.0, 1.0, 0.0))), settings)
    held = update.old_logprobs(subject, held, settings)
    tensors, state = buffer.pack(held)
    state = json.loads(json.dumps(state))
    room = buffer.room_for(state)
    assert {name: (t.shape, t.dtype) for name, t in room.items()} == {name: (t.shape, t.dtype) for name, t in tensors.items()}
    back = buffer.unpack(tensors, state)
    for before, after in zip(held, back, strict=True):
        assert (before.problem, before.signal, before.dropped) == (after.problem, after.signal, after.dropped)
        assert torch.equal(before.rewards.nan_to_num(7), after.rewards.nan_to_num(7)) and torch.equal(before.advantages, after.advantages)
        assert all(torch.equal(a, b) for a, b in zip(before.old, after.old, strict=True))
        for a, b in zip(before.answers, after.answers, strict=True):
            assert (a.prompt, a.ids, a.cut) == (b.prompt, b.ids, b.cut)
            assert _same(a.logprobs, b.logprobs) and _same(a.routes, b.routes)
            assert (a.kept is None) == (b.kept is None) and (
                a.kept is None or (_same(a.kept.ids, b.kept.ids) and _same(a.kept.offsets, b.kept.offsets))
            )


def test_an_empty_buffer_is_empty():
    tensors, state = buffer.pack([])
    assert tensors == {} and buffer.room_for(state) == {} and buffer.unpack({}, state) == []
