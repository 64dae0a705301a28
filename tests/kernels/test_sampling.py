"""Compiled draws give the reference's tokens, log-probabilities and ranks, whoever shares the batch."""

import math

import pytest
import torch

from rorqual.errors import NonFiniteError
from rorqual.inference import sampler
from rorqual.inference.params import SamplingParams
from rorqual.kernels import sampling

LOGITS = torch.randn(64, 500, generator=torch.Generator().manual_seed(0)) * 4
pytestmark = pytest.mark.skipif(not sampling.usable(LOGITS), reason="the compiled kernels are not usable here")


def _reference(call, *given):
    """The same call without the compiled code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "usable", lambda logits: False)
        return call(*given)


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("width", [500, 333, 1])
def test_tokens_are_the_references(temperature, width):
    for seed in range(20):
        params = [SamplingParams(temperature=temperature, seed=seed + row) for row in range(64)]
        given = (LOGITS, params, [row % 3 for row in range(64)], [row + 7 for row in range(64)], width)
        assert torch.equal(sampler.sample(*given), _reference(sampler.sample, *given))


def test_extreme_logits_ties_and_neighbours():
    rows = torch.stack(
        [
            torch.zeros(300),
            torch.full((300,), -1e30),
            torch.arange(300.0) * 1e3,
            torch.cat([torch.zeros(150), torch.full((150,), -math.inf)]),
        ]
    )
    for seed in range(50):
        params = [SamplingParams(seed=seed + row) for row in range(4)]
        together = sampler.sample(rows, params, [0] * 4, [1] * 4)
        assert torch.equal(together, _reference(sampler.sample, rows, params, [0] * 4, [1] * 4))
        assert [int(sampler.sample(rows[r : r + 1], [params[r]], [0], [1])) for r in range(4)] == together.tolist()
    greedy = SamplingParams(temperature=0.0)
    assert sampler.sample(torch.tensor([[1.0, 3.0, 3.0]]), [greedy], [0], [0]).tolist() == [1]


def test_frequencies_are_the_softmax():
    """20,000 draws of one distribution: every frequency within four standard errors."""
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5]]).repeat(20_000, 1)
    tokens = sampler.sample(logits, [SamplingParams(seed=row) for row in range(20_000)], [0] * 20_000, [0] * 20_000)
    p = logits[0].softmax(-1)
    seen = torch.bincount(tokens, minlength=5) / 20_000
    assert bool(((seen - p).abs() < 4 * (p * (1 - p) / 20_000).sqrt()).all())


def test_log_probabilities_and_ranks_are_the_references():
    logits = torch.cat([LOGITS, torch.zeros(1, 500), torch.full((1, 500), -80.0).index_fill(1, torch.tensor([3]), 5.0)])
    tokens = [row * 7 % 400 for row in range(66)]
    ours = sampler.token_logprobs(logits, tokens, [0] * 66, 400)
    theirs = _reference(sampler.token_logprobs, logits, tokens, [0] * 66, 400)
    assert [one.logprob for one in ours] == pytest.approx([one.logprob for one in theirs], abs=1e-12)
    assert [(one.token_id, one.rank, one.top) for one in ours] == [(one.token_id, one.rank, one.top) for one in theirs]


def test_nan_is_refused():
    broken = LOGITS.clone()
    broken[3, 17] = math.nan
    with pytest.raises(NonFiniteError, match="row 3"):
        sampler.sample(broken, [SamplingParams()] * 64, [0] * 64, [0] * 64)
