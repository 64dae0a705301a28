"""MLA against a float64 loop over heads and positions; expanded against absorbed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rorqual.model.mla import MLA
from rorqual.model.transformer import CausalLM
from tests.model.reference import mla
from tests.tiny import t0


def made(**changes: object) -> tuple[CausalLM, MLA]:
    model = CausalLM(t0(initializer_range=0.2, **changes))
    model.init_weights(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("layernorm.weight"):
                parameter.copy_(torch.linspace(0.5, 1.5, parameter.numel()))
    return model, model.model.layers[0].self_attn


@pytest.mark.parametrize("rank", [48, None])
@pytest.mark.parametrize("sizes", [{}, {"v_head_dim": 20, "num_attention_heads": 3, "kv_lora_rank": 24}, {"v_head_dim": 40}])
def test_against_the_equations(rank: int | None, sizes: dict[str, int]) -> None:
    model, attention = made(q_lora_rank=rank, **sizes)
    config = model.config
    x = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0))
    weights = {name.removesuffix(".weight"): p.detach().double() for name, p in attention.named_parameters()}
    freqs = [1, 0.0625, 0.0025, 0.00025]
    want = mla(
        x[0].double(),
        weights,
        config.num_attention_heads,
        16,
        8,
        config.v_head_dim,
        freqs,
        24**-0.5 * (0.1 * 1.3862943611198906 + 1) ** 2,
        1e-6,
    )
    context = model.context(torch.arange(9).unsqueeze(0))
    for form in ("expanded", "absorbed"):
        attention.attention_form = form
        got = attention(x, context)[0]
        torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-4)


def test_number_of_attention_parameters() -> None:
    """The counts of the tiny configuration, with and without query compression; 0 and null are the same."""

    def parameters(rank: int | None) -> int:
        return sum(p.numel() for p in CausalLM(t0(q_lora_rank=rank)).model.layers[0].self_attn.parameters())

    assert (parameters(48), parameters(None), parameters(0)) == (18_512, 16_928, 16_928)


def test_positions_may_start_anywhere() -> None:
    model, attention = made()
    x = torch.randn(2, 12, 64, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(12).unsqueeze(0).expand(2, -1)
    near, far = attention(x, model.context(positions)), attention(x, model.context(positions + 5))
    torch.testing.assert_close(near, far, atol=2e-5, rtol=1e-4)


def test_isolated_segments_do_not_see_each_other() -> None:
    model, attention = made()
    x = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[0] * 5 + [1] * 4])
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]])
    out = attention(x, model.context(positions, segments))
    changed = x.clone()
    changed[0, 2] += 1.0
    assert torch.equal(attention(changed, model.context(positions, segments))[0, 5:], out[0, 5:])
    for form in ("expanded", "absorbed"):
        attention.attention_form = form
        alone = attention(x[:, 5:], model.context(torch.arange(4).unsqueeze(0)))
        torch.testing.assert_close(out[:, 5:], alone, atol=1e-5, rtol=1e-4)


def test_runs_and_mask_give_the_same() -> None:
    """Packed samples attend one by one where they lie one after the other, and through a mask where they do not."""
    model, attention = made()
    x = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(9).expand(2, -1)
    context = model.context(positions, torch.tensor([[0] * 5 + [1] * 4, [3, 3, 3, -1, -1, 7, 7, 7, -1]]))
    assert context.runs == ((5, 4), (3, 2, 3, 1)) and context.mask is None
    masked = replace(context, runs=None, mask=context.visible())
    torch.testing.assert_close(attention(x, context), attention(x, masked), atol=1e-5, rtol=1e-4)
    mixed = model.context(positions, torch.tensor([[0, 1, 0, 1, 0, 1, 0, 1, 0]]).expand(2, -1))
    assert mixed.runs is None and mixed.mask is not None
    changed = x.clone()
    changed[:, 1] += 1.0
    assert torch.equal(attention(changed, mixed)[:, ::2], attention(x, mixed)[:, ::2])


def test_gradients_of_both_forms_agree() -> None:
    model, attention = made()
    x = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(0))
    grads = []
    for form in ("expanded", "absorbed"):
        attention.attention_form = form
        model.zero_grad()
        attention(x, model.context(torch.arange(7).expand(2, -1))).pow(2).sum().backward()
        grads.append([p.grad.clone() for p in attention.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
