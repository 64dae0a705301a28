"""Routing replay: given experts are used, gates come from live scores, and the gradient reaches the router (field case F36)."""

import torch

from rorqual.model.router import choose, route
from rorqual.model.transformer import CausalLM
from tests.tiny import t0


def _model():
    model = CausalLM(t0(initializer_range=0.1))
    model.init_weights(3)
    return model


def test_gates_of_given_experts_by_hand():
    """Scores .9 .1 .6 .5 .8 .1, experts 0 and 3 given, scale 2.5: gates 2.5 * .9/1.4 and 2.5 * .5/1.4."""
    config = t0(n_routed_experts=6, n_group=3, topk_group=1)
    scores = torch.tensor([[0.9, 0.1, 0.6, 0.5, 0.8, 0.1]])
    bias = torch.tensor([0.0, 0.0, 0.0, 0.2, 0.0, 0.0])
    out = route(torch.logit(scores), bias, config, torch.tensor([[0, 3]]))
    assert out.indices.tolist() == [[0, 3]] and torch.allclose(out.weights, torch.tensor([[1.607143, 0.892857]]), atol=1e-5)
    assert out.own.tolist() == choose(scores, bias, config).tolist() == [[3, 2]]


def test_minus_one_leaves_the_choice_to_the_router():
    logits = torch.randn(5, 8)
    own = route(logits, None, t0()).indices
    given = own.flip(1)
    given[2] = -1
    assert torch.equal(route(logits, None, t0(), given).indices[2], own[2])
    assert torch.equal(route(logits, None, t0(), given).indices[3], own[3].flip(0))


def test_replaying_its_own_choice_changes_no_bit_and_reaches_the_router():
    model, ids = _model(), torch.arange(24).view(2, 12)
    plain = model(ids)
    routes = torch.stack([routing.indices.view(2, 12, -1) for routing in plain.routings])
    assert routes.shape == (2, 2, 12, 2)
    again = model(ids, routes=routes)
    assert torch.equal(plain.hidden, again.hidden)
    other = (routes + 1) % 8
    forced = model(ids, routes=other)
    assert all(torch.equal(r.indices, wanted.flatten(0, 1)) for r, wanted in zip(forced.routings, other, strict=True))
    assert torch.equal(forced.routings[0].own, plain.routings[0].indices)
    forced.hidden.square().sum().backward()
    gradient = model.model.layers[2].mlp.gate.weight.grad
    assert gradient is not None and bool((gradient != 0).any())
