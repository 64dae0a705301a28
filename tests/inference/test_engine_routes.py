"""The engine records chosen experts: the trainer's own choice, on every path, under shared prefixes, drafts and preemption."""

import pytest
import torch

from rorqual.inference.llm import LLM
from rorqual.inference.params import SamplingParams
from tests.inference.models import build, prompt


def _own(model, ids):
    with torch.no_grad():
        return torch.stack([routing.indices for routing in model(torch.tensor([ids])).routings], dim=1)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("speculative", [0, 1])
def test_recorded_experts_are_the_models_own(compiled, speculative):
    """Prompts of 5 tokens (no shared block), 40 (two shared blocks, read in chunks) and 1; choices of one prompt share its blocks."""
    model = build()
    llm = LLM.from_model(model, speculative=speculative, compiled=compiled, enable_return_routed_experts=True)
    params = SamplingParams(max_tokens=20, n=3, seed=4, ignore_eos=True)
    for request in llm.generate([prompt(5), prompt(40), prompt(1)], params):
        for answer in request.outputs:
            ids = [*request.prompt_token_ids, *answer.token_ids]
            assert answer.routed_experts is not None and answer.routed_experts.dtype == torch.int16
            assert answer.routed_experts.shape == (len(ids) - 1, 2, 2)
            assert torch.equal(answer.routed_experts.sort(-1)[0].long(), _own(model, ids[:-1]).sort(-1)[0])


def test_recorded_under_preemption():
    """A cache too small for all: some are computed again, and their experts with them."""
    from rorqual.inference.engine import Engine

    model = build()
    engine = Engine(model, num_blocks=6, max_num_seqs=4, enable_return_routed_experts=True)
    for number in range(4):
        engine.add_request(str(number), prompt(20, seed=number), SamplingParams(max_tokens=25, ignore_eos=True, seed=number))
    tokens, routes = {str(n): prompt(20, seed=n) for n in range(4)}, {}
    while engine.has_work:
        for out in engine.step():
            tokens[out.request_id] += out.new_token_ids
            if out.routed_experts is not None:
                routes[out.request_id] = out.routed_experts
    assert engine.stats.preemptions > 0
    for name, ids in tokens.items():
        assert torch.equal(routes[name].sort(-1)[0].long(), _own(model, ids[:-1]).sort(-1)[0])


def test_off_by_default():
    (request,) = LLM.from_model(build()).generate([prompt(3)], SamplingParams(max_tokens=2))
    assert request.outputs[0].routed_experts is None
