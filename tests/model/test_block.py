"""The stages of a block compose to its forward; dense and MoE blocks are one family."""

from __future__ import annotations

import pytest
import torch

from rorqual.model.block import Block
from rorqual.model.moe import MoE
from rorqual.model.transformer import CausalLM
from tests.tiny import t0


@pytest.mark.parametrize("layer", [0, 1])
def test_stages_compose(layer: int) -> None:
    model = CausalLM(t0(initializer_range=0.1))
    model.init_weights(0)
    block: Block = model.model.layers[layer]
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    context = model.context(torch.arange(5).expand(2, -1))
    residual, u = block.attend(x, context)
    torch.testing.assert_close(residual, x + block.self_attn(block.input_layernorm(x), context))
    sent = block.dispatch(u)
    rows = block.experts(sent, u)
    out, stats = block.combine(residual, rows, sent, u)
    whole, whole_stats = block(x, context)
    assert torch.equal(out, whole)
    assert (stats is not None) == isinstance(block.mlp, MoE) == (layer > 0)
    if stats is not None and whole_stats is not None:
        assert rows.shape == (2 * 5 * 2, 64)  # one row per token and chosen expert: nothing is dropped
        assert torch.equal(stats.routing.indices, whole_stats.routing.indices) and stats.layer == layer
