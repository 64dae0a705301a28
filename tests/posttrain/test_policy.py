"""Trainer's log-probabilities: equal to autograd's, to the engine's within 1e-5 with 0 flips, untouched by padding and neighbours."""

import pytest
import torch

from rorqual.inference.llm import LLM
from rorqual.inference.params import SamplingParams
from rorqual.posttrain.policy import Kept, LogProbs, Row, kept_sets, micro_batches, score
from tests.inference.models import build, prompt


def _rollout(model, params, prompts=((5, 0), (18, 1))):
    llm = LLM.from_model(model, speculative=0, enable_return_routed_experts=True)
    requests = llm.generate([prompt(length, seed) for length, seed in prompts], params)
    return [(request, answer) for request in requests for answer in request.outputs]


def _rows(rollout):
    return [Row(request.prompt_token_ids, answer.token_ids, answer.routed_experts) for request, answer in rollout]


@pytest.mark.parametrize(("temperature", "limit", "sets"), [(1.0, None, False), (0.7, 200, False), (1.3, 250, True)])
def test_log_probabilities_and_gradients_are_autograds(temperature, limit, sets):
    torch.manual_seed(0)
    hidden, head, targets = torch.randn(7, 16), torch.randn(256, 16), torch.randint(0, 200, (7,))
    kept, mask = None, torch.ones(7, limit or 256, dtype=torch.bool)
    if sets:
        mask = torch.rand(7, limit) < 0.3
        mask[torch.arange(7), targets] = True
        kept = Kept(mask.nonzero()[:, 1].int(), torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)]))
    upstream = torch.randn(7)
    a, b = (
        (hidden.clone().requires_grad_(), head.clone().requires_grad_()),
        (hidden.clone().requires_grad_(), head.clone().requires_grad_()),
    )
    logp, plain, entropy = LogProbs.apply(*a, targets, temperature, limit, kept)
    table = (b[0] @ b[1][:limit].t()).log_softmax(-1)
    expected = ((b[0] @ b[1][:limit].t()) / temperature).masked_fill(~mask, float("-inf")).log_softmax(-1)[torch.arange(7), targets]
    assert torch.allclose(logp, expected, atol=1e-5) and torch.allclose(plain, table[torch.arange(7), targets], atol=1e-5)
    assert torch.allclose(entropy, -(table.exp() * table).sum(-1), atol=1e-5)
    (logp * upstream).sum().backward()
    (expected * upstream).sum().backward()
    assert all(torch.allclose(x.grad, y.grad, atol=1e-5) for x, y in zip(a, b, strict=True))


def test_engine_and_trainer_agree_with_zero_flips():
    """Field case F36 in FP32: gap below 1e-5, no flips, and the gradient reaches the router with replay on."""
    model = build()
    rollout = _rollout(model, SamplingParams(max_tokens=64, n=2, seed=5, logprobs=0))
    scored = score(model, _rows(rollout))
    engine = torch.tensor([one.logprob for _, answer in rollout for one in answer.logprobs])
    assert float((scored.plain - engine).abs().max()) < 1e-5
    assert scored.flips == 0 and scored.routed == sum(len(row.prompt) + len(row.answer) - 1 for row in _rows(rollout)) * 4
    scored.logp.sum().backward()
    assert bool((model.model.layers[1].mlp.gate.weight.grad != 0).any())


def test_flips_are_counted():
    model = build()
    rows = _rows(_rollout(model, SamplingParams(max_tokens=8, seed=5)))
    other = [Row(row.prompt, row.answer, (row.routes + 1) % 8) for row in rows]
    assert score(model, other).flips > 0
    assert score(model, other, replay=False).routed == 0


def test_padding_and_neighbours_change_nothing():
    model = build()
    rows = _rows(_rollout(model, SamplingParams(max_tokens=12, n=2, seed=1)))
    together, alone = score(model, rows), [score(model, [row]) for row in rows]
    assert torch.allclose(together.logp, torch.cat([one.logp for one in alone]), atol=1e-5)
    assert torch.equal(together.loads, sum(one.loads for one in alone))


def test_the_same_micro_batch_gives_the_same_bits():
    model = build()
    rows = _rows(_rollout(model, SamplingParams(max_tokens=12, n=2, seed=1)))
    with torch.no_grad():
        old = score(model, rows).logp
    assert torch.equal((score(model, rows).logp - old).exp(), torch.ones_like(old))


def test_recorded_routes_are_what_was_used():
    model = build()
    rows = _rows(_rollout(model, SamplingParams(max_tokens=6, seed=1)))
    again = score(model, rows, record=True).routes
    assert all(torch.equal(routes, row.routes) for routes, row in zip(again, rows, strict=True))


def test_sets_of_top_k_and_top_p():
    """The kept sets hold the drawn token, at most k ids, and probabilities over them sum to one."""
    model = build()
    params = SamplingParams(max_tokens=10, n=2, seed=3, top_k=5, top_p=0.9, temperature=1.2)
    rows = _rows(_rollout(model, params))
    sets = kept_sets(model, rows, params)
    for row, kept in zip(rows, sets, strict=True):
        mask = kept.mask(0, len(row.answer), 256)
        assert bool(mask[torch.arange(len(row.answer)), torch.tensor(row.answer)].all()) and int(mask.sum(1).max()) <= 5
    joined = Kept.join(sets)
    assert all(
        torch.equal(a.ids, b.ids) and torch.equal(a.offsets, b.offsets)
        for a, b in zip(sets, joined.split([len(r.answer) for r in rows]), strict=True)
    )
    with_sets = [Row(row.prompt, row.answer, row.routes, kept) for row, kept in zip(rows, sets, strict=True)]
    restricted, free = score(model, with_sets, temperature=1.2), score(model, rows, temperature=1.2)
    assert bool((restricted.logp >= free.logp - 1e-6).all()) and bool((restricted.logp > free.logp + 1e-3).any())


def test_micro_batches_hold_every_row_once_within_the_limit():
    lengths = [5, 9, 1, 9, 3, 30]
    parts = list(micro_batches(lengths, 20))
    assert sorted(n for part in parts for n in part) == list(range(6))
    assert parts[0] == [5] and all(max(lengths[n] for n in part) * len(part) <= 20 for part in parts[1:])
