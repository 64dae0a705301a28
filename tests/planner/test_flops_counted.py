"""FLOPs of the planner beside those of the real model: torch's counter over forward and backward, for random configurations, exactly.

The counter cannot look into compiled kernels: the experts' GEMMs are those of the reference here, each an `mm` of its own (`grouped_mm` would
count as nothing), and GEMMs of one query row each stand in for attention, which is the exact triangle:
T (T + 1) / 2 keys for T tokens where the planner's convention has T^2 / 2; one block of all rows is the full square.
"""

from __future__ import annotations

import random

import pytest

from rorqual.config import ModelConfig
from rorqual.kernels import ops, reference
from rorqual.model.mla import MLA
from rorqual.model.transformer import CausalLM
from rorqual.planner.flops import attention_flops_per_token, decode_flops_per_token, forward_flops_per_token, train_flops_per_token
from rorqual.planner.inventory import inventory
from rorqual.planner.params import count
from tests.tiny import t0

torch = pytest.importorskip("torch")
flop_counter = pytest.importorskip("torch.utils.flop_counter")


def in_blocks(rows: int):
    """Causal attention out of GEMMs, each of `rows` query rows against the keys up to the last of them."""

    def attention(q, k, v, scale, mask):
        assert mask is None
        length, out = q.shape[2], []
        for start in range(0, length, rows):
            end = min(start + rows, length)
            above = torch.ones(end - start, end, dtype=torch.bool).triu(start + 1)
            out.append(
                (q[:, :, start:end] @ k[:, :, :end].transpose(2, 3) * scale).masked_fill(above, -torch.inf).softmax(-1) @ v[:, :, :end]
            )
        return torch.cat(out, dim=2).transpose(1, 2).flatten(2)

    return attention


def drawn(seed: int) -> ModelConfig:
    """A configuration with ratios of its own."""
    draw = random.Random(seed)
    groups = draw.choice([1, 2, 4])
    experts = groups * draw.choice([2, 3, 4])
    kept = draw.randint(1, groups)
    layers = draw.randint(1, 4)
    return t0(
        vocab_size=draw.choice([97, 256, 300]), hidden_size=8 * draw.randint(3, 9), num_hidden_layers=layers, first_k_dense_replace=draw.randint(0, layers),
        intermediate_size=8 * draw.randint(3, 20), moe_intermediate_size=8 * draw.randint(1, 6), n_routed_experts=experts, n_shared_experts=draw.randint(0, 2),
        num_experts_per_tok=draw.randint(1, kept * experts // groups), n_group=groups, topk_group=kept, num_attention_heads=draw.randint(1, 5),
        q_lora_rank=draw.choice([None, 24, 40]), kv_lora_rank=8 * draw.randint(1, 5), qk_nope_head_dim=4 * draw.randint(1, 6), qk_rope_head_dim=2 * draw.randint(1, 6),
        v_head_dim=4 * draw.randint(1, 6), num_nextn_predict_layers=draw.randint(0, 2), rope_scaling=None, tie_word_embeddings=draw.random() < 0.3,
    )  # fmt: skip


def counted(config: ModelConfig, length: int, mtp: bool) -> tuple[int, int]:
    """(forward, backward) FLOP of the real model over one sequence of `length` tokens, all heads included."""
    model = CausalLM(config)
    model.init_weights(0)
    ids = torch.randint(0, config.vocab_size, (1, length), generator=torch.Generator().manual_seed(1))
    with flop_counter.FlopCounterMode(display=False) as forward:
        out = model(ids, mtp=mtp)
        loss = sum(model.logits(hidden).square().mean() for hidden in (out.hidden, *out.mtp_hidden))
    with flop_counter.FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def planned(config: ModelConfig, length: int, mtp: bool) -> float:
    """The planner's forward FLOP of the same, with the triangle's diagonal; MTP module k sees k tokens fewer."""
    depth = config.num_nextn_predict_layers if mtp else 0
    total = length * forward_flops_per_token(config, length) + attention_flops_per_token(config, length)
    without = config.with_(num_nextn_predict_layers=0)
    for ahead in range(1, depth + 1):
        seen = length - ahead
        one = config.with_(num_nextn_predict_layers=1)
        total += seen * (forward_flops_per_token(one, seen, mtp=True) - forward_flops_per_token(without, seen)) + attention_flops_per_token(
            one, seen, 1
        )
    return total


@pytest.fixture(autouse=True)
def _countable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_grouped_kernels", lambda *tensors: reference)


@pytest.mark.parametrize("seed", range(12))
def test_forward_and_backward_of_the_real_model(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "attention", in_blocks(1))
    config, length = drawn(seed), 13
    for mtp in (False, True):
        forward, backward = counted(config, length, mtp)
        assert forward == planned(config, length, mtp)
        assert backward == 2 * forward


@pytest.mark.parametrize("seed", range(3))
def test_the_full_square(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block of query rows computes the whole square, which is what `causal=False` counts."""
    monkeypatch.setattr(ops, "attention", in_blocks(29))
    config = drawn(seed).with_(num_nextn_predict_layers=0)
    forward, backward = counted(config, 29, mtp=False)
    assert forward == 29 * forward_flops_per_token(config, 29, causal=False)
    assert forward + backward == 29 * train_flops_per_token(config, 29, causal=False)


@pytest.mark.parametrize("seed", range(12))
def test_parameters_equal_the_inventory_and_the_model(seed: int) -> None:
    config = drawn(seed)
    layers = [f"model.layers.{layer}." for layer in range(config.num_hidden_layers, config.num_blocks)]
    own = [t for t in inventory(config) if any(t.name.startswith(prefix) for prefix in layers)]
    copies = sum(t.elements for t in own if t.name.endswith(("embed_tokens.weight", "shared_head.head.weight")))
    parameters = count(config)
    assert parameters.mtp == sum(t.elements for t in own) - copies
    assert parameters.total == sum(t.elements for t in inventory(config)) - sum(t.elements for t in own)
    with torch.device("meta"):
        assert sum(t.numel() for t in CausalLM(config).state_dict().values()) == parameters.total + parameters.mtp


class _Cache:
    """`before` past entries for every layer."""

    def __init__(self, config: ModelConfig, before: int) -> None:
        self.latents, self.keys = torch.randn(1, before, config.kv_lora_rank), torch.randn(1, before, config.qk_rope_head_dim)

    def update(self, layer, c_kv, k_rope, positions):
        t = self.latents.shape[1] + 1
        return torch.cat([self.latents, c_kv], dim=1), torch.cat([self.keys, k_rope], dim=1), torch.arange(t).unsqueeze(0)


@pytest.mark.parametrize("form", ["absorbed", "expanded"])
@pytest.mark.parametrize("seed", range(6))
def test_decoding_one_token_over_a_cache(seed: int, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(q, k, v, scale, mask):  # two GEMMs, so that the counter sees their widths
        p = (q @ k.transpose(2, 3) * scale).masked_fill(~mask.unsqueeze(1), float("-inf")).softmax(dim=-1)
        return (p @ v).transpose(1, 2).flatten(2)

    monkeypatch.setattr(ops, "attention", attention)
    config, before = drawn(seed).with_(num_nextn_predict_layers=0), 17
    model = CausalLM(config)
    model.init_weights(0)
    for module in model.modules():
        if isinstance(module, MLA):
            module.attention_form = form
    with torch.no_grad(), flop_counter.FlopCounterMode(display=False) as seen:
        out = model(torch.tensor([[3]]), positions=torch.tensor([[before]]), cache=_Cache(config, before))
        model.logits(out.hidden)
    assert seen.get_total_flops() == decode_flops_per_token(config, before + 1, form)
