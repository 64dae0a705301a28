"""Shared computation changes no log-probability: against one plain forward per request."""

from __future__ import annotations

import pytest
import torch

from rorqual.errors import ConfigError, DataError
from rorqual.eval.score import Scorer
from rorqual.inference.engine import Engine
from rorqual.inference.params import SamplingParams
from tests.eval import small
from tests.inference.models import prompt


def _requests(shots: int = 70) -> list[tuple[list[int], int]]:
    """Twelve items of four choices after the same examples, two of which swap them, and texts that share nothing."""
    first, out = prompt(shots, 99), []
    for item in range(12):
        context = (prompt(shots, 98) if item < 2 else first) + prompt(10 + item, item)
        out += [(context + prompt(1 + (item * 7 + choice * 5) % 23, 100 + item * 4 + choice), len(context)) for choice in range(4)]
    return out + [(prompt(20 + item * 3, 500 + item), 5 + item) for item in range(9)]


@pytest.mark.parametrize("budget", [64, 2048])
def test_scores_are_those_of_plain_forwards(budget):
    scorer = Scorer(Engine(small.model(), small.tokenizer(), poison=True), budget)
    requests = _requests()
    for (tokens, start), found in zip(requests, scorer.score(requests), strict=True):
        assert found.logprobs == pytest.approx(small.reference(tokens, start), abs=2e-5)
    assert scorer._engine.pool.num_free + len(scorer._prefix.blocks if scorer._prefix else []) == scorer._engine.pool.num_blocks
    scorer.forget()
    assert scorer._engine.pool.num_free == scorer._engine.pool.num_blocks


def test_greedy_is_told():
    model = small.model()
    tokens = prompt(20, 3)
    for _ in range(3):
        with torch.no_grad():
            tokens.append(int(model.logits(model(torch.tensor([tokens])).hidden)[0, -1, : small.tokenizer().vocab_size].argmax()))
    scorer = Scorer(Engine(model, small.tokenizer()))
    right, wrong = scorer.score([(tokens, 20), (tokens[:-1] + [(tokens[-1] + 1) % 256], 20)])
    assert right.greedy and not wrong.greedy


def test_what_is_shared_is_computed_once():
    """Four choices of 3 tokens after 40: 40 + 4 * 2 tokens; after a common beginning of 160, ten items of 20 read it once."""
    scorer = Scorer(Engine(small.model(), small.tokenizer()))
    context = prompt(40, 1)
    scorer.score([(context + prompt(3, choice), 40) for choice in range(2, 6)])
    assert scorer.computed.tokens == 40 + 4 * 2 and scorer.computed.scored == 12
    scorer = Scorer(Engine(small.model(), small.tokenizer()))
    shots = prompt(160, 7)
    scorer.score([(shots + prompt(20, item), 175) for item in range(10)])
    assert scorer.computed.tokens == 160 + 10 * 19
    scorer.score([(shots + prompt(20, item), 175) for item in range(20, 24)])
    assert scorer.computed.tokens == 160 + 14 * 19


def test_order_and_neighbours_do_not_matter():
    requests = _requests(shots=33)
    scorer = Scorer(Engine(small.model(), small.tokenizer()))
    together = scorer.score(requests)
    reversed_ = scorer.score(requests[::-1])[::-1]
    alone = [scorer.score([request])[0] for request in requests[:12]]
    for one, other in [*zip(together, reversed_, strict=True), *zip(together[:12], alone, strict=True)]:
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)


def test_a_small_cache_takes_smaller_batches():
    scorer = Scorer(Engine(small.model(), small.tokenizer(), num_blocks=40))
    requests = _requests()
    for (tokens, start), found in zip(requests, scorer.score(requests), strict=True):
        assert found.logprobs == pytest.approx(small.reference(tokens, start), abs=2e-5)


@pytest.mark.parametrize(("tokens", "start", "message"), [([5], 1, "starts at"), ([5, 6], 0, "starts at"), ([5, 900], 1, "outside the vocabulary"), (list(range(2, 250)) * 3, 9, "max_position_embeddings")])  # fmt: skip
def test_requests_that_cannot_be_are_refused(tokens, start, message):
    with pytest.raises(DataError, match=message):
        Scorer(Engine(small.model(), small.tokenizer())).score([(tokens, start)])


def test_a_busy_engine_is_refused():
    engine = Engine(small.model(), small.tokenizer())
    engine.add_request("a", [5, 6], SamplingParams(max_tokens=2))
    with pytest.raises(ConfigError, match="unfinished"):
        Scorer(engine).score([([5, 6], 1)])
