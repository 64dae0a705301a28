"""The compiled halves of a block equal its own layers, which take over wherever a layer is more than a plain matrix."""

from __future__ import annotations

import copy

import pytest
import torch

from rorqual.eval import blocks
from rorqual.kernels import native, projections
from rorqual.kernels.tree import Tree
from rorqual.model.layers import Linear
from rorqual.model.moe import Dispatcher
from tests.eval import small

TREE = Tree((((0, 40),), ((0, 25), (40, 13))))
POSITIONS = torch.tensor([[*range(40), *range(25, 38)]])
needs_compiled = pytest.mark.skipif(not native.usable(torch.zeros(1)), reason="the compiled kernels are not usable here")


class _Doubled(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class _Other(Dispatcher):
    pass


def _x(model) -> torch.Tensor:
    return torch.randn(1, 53, model.config.hidden_size, generator=torch.Generator().manual_seed(0))


def _halves(model, block, x):
    y = blocks.attended(block, x.clone(), model.context(POSITIONS), TREE)
    return y.clone(), blocks.fed(block, y)


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1])
def test_both_ways_give_what_the_block_gives(layer, monkeypatch):
    model = small.model()
    block, x = model.model.layers[layer], _x(small.model())
    rows = [torch.arange(40), torch.cat([torch.arange(25), torch.arange(40, 53)])]
    alone = [block(x[:, row], model.context(POSITIONS[:, row]))[0][0] for row in rows]
    expected = torch.cat([alone[0], alone[1][25:]])
    compiled = _halves(model, block, x)
    monkeypatch.setattr(native, "usable", lambda *_: False)
    for found in (compiled, _halves(model, block, x)):
        torch.testing.assert_close(found[1][0], expected, atol=2e-5, rtol=2e-5)


@needs_compiled
@torch.no_grad()
def test_a_layer_of_another_class_is_called(monkeypatch):
    model = copy.deepcopy(small.model())
    block, x = model.model.layers[1], _x(model)
    plain = _halves(model, block, x)
    block.self_attn.o_proj.__class__ = _Doubled
    changed = _halves(model, block, x)
    torch.testing.assert_close(changed[0] - x, 2 * (plain[0] - x), atol=1e-5, rtol=1e-5)
    block.self_attn.o_proj.__class__ = Linear
    block.mlp.shared_experts.down_proj.__class__ = _Doubled
    assert (_halves(model, block, x)[1] - plain[1]).abs().max() > 1e-3
    block.mlp.shared_experts.down_proj.__class__ = Linear
    block.mlp.dispatcher = _Other()
    monkeypatch.setattr(blocks.ffn, "add_experts", lambda *_: pytest.fail("the dispatcher is another one"))
    torch.testing.assert_close(_halves(model, block, x)[1], plain[1], atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_half_precision_takes_the_modules(monkeypatch):
    model = copy.deepcopy(small.model()).bfloat16()
    monkeypatch.setattr(projections, "attention_inputs", lambda *_: pytest.fail("not FP32"))
    assert all(found.isfinite().all() for found in _halves(model, model.model.layers[1], _x(model).bfloat16()))
