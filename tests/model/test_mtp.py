"""MTP wiring: which hidden state meets which token, in which order, and what it predicts."""

from __future__ import annotations

import torch

from rorqual.model.mtp import MTPBlock
from rorqual.model.transformer import CausalLM
from tests.tiny import t0


def made(depth: int) -> CausalLM:
    model = CausalLM(t0(num_nextn_predict_layers=depth, initializer_range=0.1))
    model.init_weights(0)
    return model


def test_modules_chain_and_shift() -> None:
    """Depth k takes h^{k-1}_i and Emb(t_{i+k}) for i = 0..s-1-k, under a causal mask on the shifted stream."""
    model = made(2)
    ids = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    out = model(ids, mtp=True)
    assert [h.shape[1] for h in out.mtp_hidden] == [8, 7]
    previous = out.hidden
    for ahead, (block, got) in enumerate(zip(model.model.layers[3:], out.mtp_hidden, strict=True), start=1):
        keep = 9 - ahead
        merged = torch.cat([block.enorm(model.model.embed_tokens(ids[:, ahead:])), block.hnorm(previous[:, :keep])], dim=-1)
        x, _ = block(merged @ block.eh_proj.weight.T, model.context(torch.arange(keep).expand(2, -1)))
        previous = block.shared_head.norm(x)
        torch.testing.assert_close(got, previous, atol=1e-6, rtol=1e-5)


def test_embedding_comes_first() -> None:
    """With eh_proj = [I, 0] the module sees nothing of the hidden state."""
    model = made(1)
    block: MTPBlock = model.model.layers[3]
    with torch.no_grad():
        block.eh_proj.weight.copy_(torch.cat([torch.eye(64), torch.zeros(64, 64)], dim=1))
    context = model.context(torch.arange(4).expand(1, -1))
    embedding = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0))
    a, _ = block.predict(torch.randn(1, 4, 64), embedding, context)
    b, _ = block.predict(torch.randn(1, 4, 64), embedding, context)
    assert torch.equal(a, b)


def test_a_future_token_reaches_only_later_predictions() -> None:
    model = made(1)
    ids = torch.randint(0, 256, (1, 9), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 256
    a, b = model(ids, mtp=True), model(changed, mtp=True)
    torch.testing.assert_close(a.mtp_hidden[0][:, :5], b.mtp_hidden[0][:, :5])  # position 4 embeds token 5, position 5 embeds token 6
    assert (a.mtp_hidden[0][:, 5] - b.mtp_hidden[0][:, 5]).abs().max() > 0.01
    torch.testing.assert_close(a.hidden[:, :6], b.hidden[:, :6])


def test_mtp_layers_are_counted_with_the_others() -> None:
    model = made(2)
    out = model(torch.zeros(2, 6, dtype=torch.int64), mtp=True)
    assert out.layers == (1, 2, 3, 4) == model.config.moe_layers
    assert out.loads.sum(dim=1).tolist() == [24, 24, 20, 16]
    assert model(torch.zeros(2, 6, dtype=torch.int64)).layers == (1, 2)
    assert [layer for layer, _ in model.router_biases()] == [1, 2, 3, 4]
