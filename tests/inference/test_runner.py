"""The runner's drafts are those of the MTP modules run without a cache, the last one on its own states beyond their number."""

from __future__ import annotations

import pytest
import torch

from rorqual.errors import ConfigError
from rorqual.inference.engine import Engine
from rorqual.inference.llm import LLM
from rorqual.inference.paged import PagedStorage
from rorqual.inference.runner import Runner
from rorqual.inference.scheduler import Sequence, Work
from rorqual.kernels import native
from tests.inference.models import GREEDY, agreeing, prompt


@pytest.mark.parametrize(("depth", "drafts"), [(1, 1), (2, 2), (2, 1)])
@torch.no_grad()
def test_states_and_drafts(depth, drafts):
    model, ids = agreeing(depth), prompt(21)
    storage = PagedStorage(model.config, 4, num_layers=model.config.num_hidden_layers + drafts, poison=True)
    runner = Runner(model, storage, drafts)
    s = Sequence("a", 0, 0, list(ids), 21, 64, GREEDY, frozenset(), blocks=[3, 1, 0])
    for end in (5, 20):
        (states,) = runner.trunk([Work(s, end)])
        s.computed = end
        runner.observe(s, states)
        runner.catch_up([s])
    assert (states[-1] - model(torch.tensor([ids[:20]])).hidden[0, -1]).abs().max() < 1e-5
    (got,) = runner.propose([s], drafts)
    for module, draft in enumerate(got):
        hidden = model(torch.tensor([[*ids, *got[:module]]]), mtp=True).mtp_hidden[module][0, -1]
        assert int(model.logits(hidden).argmax()) == draft
    assert s.draft_start == 20 - drafts + 1 and len(got) == drafts


@torch.no_grad()
def test_the_last_module_goes_on_from_its_own_states():
    model, ids = agreeing(1, right=True), prompt(4)
    runner = Runner(model, PagedStorage(model.config, 1, num_layers=4), 3)
    s = Sequence("a", 0, 0, list(ids), 4, 64, GREEDY, frozenset(), blocks=[0])
    runner.observe(s, runner.trunk([Work(s, 3)])[0])
    tokens = list(ids)
    for _ in range(3):  # blocks that add nothing: the next token depends on the last alone
        tokens.append(int(model.logits(model(torch.tensor([tokens])).hidden[0, -1]).argmax()))
    (got,) = runner.propose([s], 3)
    assert got[0] == tokens[4] and len(got) == 3 and s.draft_start == 3


@pytest.mark.skipif(native.library().library is None, reason=f"no compiled kernels: {native.library().detail}")
def test_lossy_weights_run_chunks_too_and_say_their_error():
    """INT8: answers do not depend on chunks, neighbours or drafts, and are those of a model with the rounded weights nearly everywhere."""
    model, prompts, answers = agreeing(1), [prompt(40), prompt(90, 1)], []
    for budget, drafts in ((512, 0), (23, 1), (64, 0)):
        engine = Engine(model, weights="int8", max_num_batched_tokens=budget, speculative=drafts)
        for number, ids in enumerate(prompts):
            engine.add_request(str(number), ids, GREEDY)
        got: dict[str, list[int]] = {"0": [], "1": []}
        while engine.has_work:
            for out in engine.step():
                got[out.request_id] += out.new_token_ids
        answers.append(got)
    assert answers[0] == answers[1] == answers[2]
    found = engine.runner.weight_error()
    assert found is not None and 0.003 < found[0] < 0.02 and 0 < found[1] < 0.1
    assert Engine(model).runner.weight_error() is None
    with pytest.raises(ConfigError, match="need the compiled step"):
        Engine(model, weights="int8", compiled=False)


@pytest.mark.skipif(native.library().library is None, reason=f"no compiled kernels: {native.library().detail}")
def test_a_bf16_model_answers_as_its_values_in_fp32():
    model = agreeing(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    ids = [prompt(9), prompt(14, 1)]
    want = [r.outputs[0].token_ids for r in LLM.from_model(model, speculative=0).generate(ids, GREEDY)]
    assert [r.outputs[0].token_ids for r in LLM.from_model(model.bfloat16(), speculative=0).generate(ids, GREEDY)] == want
