"""The runner's drafts are those of the MTP modules run without a cache, the last one on its own states beyond their number."""

from __future__ import annotations

import pytest
import torch

from rorqual.inference.paged import PagedStorage
from rorqual.inference.runner import Runner
from rorqual.inference.scheduler import Sequence, Work
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
