"""FLOPs per token against the published figures, hand counts, and the counter of the real model."""

from __future__ import annotations

import pytest

from rorqual.config import ModelConfig
from rorqual.errors import ConfigError
from rorqual.planner.flops import (
    attention_flops_per_token,
    by_module,
    decode_flops_per_token,
    forward_flops_per_token,
    train_flops_per_token,
)
from rorqual.planner.params import count
from tests.planner.configurations import V3
from tests.tiny import t0


def test_671b_at_4096() -> None:
    attention = 3 * attention_flops_per_token(V3, 4096)
    assert attention == 3 * 2 * 128 * (192 + 128) * 2048 * 61 == 30_702_305_280
    assert train_flops_per_token(V3, 4096) == 6 * 36_624_596_992 + attention
    assert 249.7e9 < train_flops_per_token(V3, 4096) < 250.5e9
    assert 6 * count(V3).active_without_embedding + attention == pytest.approx(250.46e9, abs=5e6)
    assert train_flops_per_token(V3, 4096, causal=False) == pytest.approx(281.2e9, rel=5e-4)


def test_671b_mtp_adds_ten() -> None:
    assert train_flops_per_token(V3, 4096, mtp=True) - train_flops_per_token(V3, 4096) == pytest.approx(10.2e9, rel=2e-3)


@pytest.mark.parametrize(
    ("shape", "seq_len", "matmul", "flops"),
    [
        ((4096, 192, 6, 512, 64, 16, 4, 6, 96, 64, 32, 16, 32), 256, 2_755_584, 18_745_344),
        ((4096, 384, 8, 1024, 64, 32, 4, 12, 192, 128, 32, 16, 32), 256, 9_302_016, 61_710_336),
        ((8192, 768, 12, 2048, 64, 64, 6, 12, 384, 256, 64, 32, 64), 512, 46_202_880, 312_606_720),
    ],
    ids=["nano", "micro", "mini"],
)
def test_benchmark_shapes(shape: tuple[int, ...], seq_len: int, matmul: int, flops: int) -> None:
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok",
             "num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")  # fmt: skip
    config = ModelConfig(**dict(zip(names, shape, strict=True)), n_group=4, topk_group=2, first_k_dense_replace=1)
    assert count(config).matmul == matmul
    assert train_flops_per_token(config, seq_len) == flops


def test_backward_is_twice_forward_and_a_tied_head_still_costs() -> None:
    assert train_flops_per_token(t0(), 64, mtp=True) == 3 * forward_flops_per_token(t0(), 64, mtp=True)
    assert train_flops_per_token(t0(), 64) == train_flops_per_token(t0(tie_word_embeddings=True), 64)


def test_model_without_experts() -> None:
    config = t0(n_routed_experts=0, num_nextn_predict_layers=0)
    per_layer = 64 * 48 + 48 * 4 * 24 + 64 * 40 + 32 * 4 * 32 + 4 * 16 * 64 + 3 * 64 * 160
    assert forward_flops_per_token(config, 32) == 2 * (3 * per_layer + 256 * 64) + 2 * 4 * (24 + 16) * 16 * 3


def test_length_must_be_positive() -> None:
    with pytest.raises(ConfigError, match=r"seq_len \(0\)"):
        train_flops_per_token(t0(), 0)


def test_decoding_671b_by_hand() -> None:
    """Absorbed at 4,096: 73.25 GF of weights and 2 x 128 x (2 x 512 + 64) x 4096 x 61 of attention; expanding the cache anew costs 59 times as much in all."""
    weights = 2 * 36_624_596_992
    assert decode_flops_per_token(V3, 4096) == weights + 2 * 128 * 1088 * 4096 * 61
    assert decode_flops_per_token(V3, 4096, "naive") == weights + 2 * 128 * 320 * 4096 * 61
    up = 512 * 128 * 256
    assert decode_flops_per_token(V3, 4096, "expanded") == weights - 2 * 61 * up + 2 * (128 * 320 + up) * 4096 * 61
    assert decode_flops_per_token(V3, 1, mtp=True) > decode_flops_per_token(V3, 1)
    for wrong in ({"context": 0}, {"context": 1, "form": "flash"}):
        with pytest.raises(ConfigError):
            decode_flops_per_token(V3, **wrong)


@pytest.mark.parametrize(
    "config",
    [V3, t0(), t0(n_routed_experts=0, num_nextn_predict_layers=0), t0(tie_word_embeddings=True, q_lora_rank=None, n_shared_experts=0)],
)
def test_modules_add_up(config: ModelConfig) -> None:
    parts, sizes = by_module(config, 64), count(config)
    assert sum(one.parameters for one in parts) == sizes.total + sizes.mtp
    assert sum(one.active for one in parts) == sizes.active + sizes.mtp_active
    assert sum(one.forward_flops for one in parts) == pytest.approx(forward_flops_per_token(config, 64, mtp=True), rel=1e-12)


def test_modules_of_671b() -> None:
    parts = {one.name: one for one in by_module(V3, 4096)}
    assert parts["routed experts"].parameters == 58 * 256 * 44_040_192 and parts["routed experts"].active == 58 * 8 * 44_040_192
    assert parts["attention products"].train_flops == 30_702_305_280 and parts["routers"].active == 58 * 1_835_264
    assert parts["head"].train_flops == 6 * 926_679_040 and parts["MTP modules"].parameters == 11_610_068_224
