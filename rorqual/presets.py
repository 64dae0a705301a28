"""The members of the family as presets: the fields of their published configurations, and which of them are not confirmed.

Report section 4.2 for DeepSeek-V3; V2's paper (3.1.2, appendix B) for V2 and V2-Lite; copies of the published config.json for
Moonlight and Kimi-K2. Other sizes than these are written as a `config.json` of one's own. Trap avoided: a field that no source
confirms is a guess, so it stands in `Member.unverified` with its reason, and `rorqual inspect --preset` shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from rorqual.config import ModelConfig, RopeScaling
from rorqual.errors import ConfigError

FP8_QUANTIZATION: Mapping[str, Any] = MappingProxyType(
    {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
)
"""`quantization_config` of the released V3, R1 and Kimi-K2 files: E4M3 weights, a scale for each block of 128 x 128."""


@dataclass(frozen=True)
class Member:
    """One published model: its shape, how its weights are stored, and what is not confirmed about it."""

    title: str
    config: ModelConfig
    """The shape alone; `released` adds the quantisation of the published files."""
    quantization_config: Mapping[str, Any] | None = None
    """Of the released files; None for BF16."""
    unverified: Mapping[str, str] = field(default_factory=dict)
    """{field of `config`: why no source confirms its value}."""

    @property
    def released(self) -> ModelConfig:
        """The configuration as published, quantisation included."""
        return self.config.with_(quantization_config=self.quantization_config)


_V3_YARN = RopeScaling(factor=40.0, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=1.0)
_V2_YARN = RopeScaling(factor=40.0, original_max_position_embeddings=4096, mscale=0.707, mscale_all_dim=0.707)
_K2_YARN = RopeScaling(factor=32.0, original_max_position_embeddings=4096, beta_fast=1.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0)

# the released state; the recipe of the pre-training takes the context extension off again
_V3 = ModelConfig(rope_scaling=_V3_YARN, max_position_embeddings=163840)
_V2_LITE = ModelConfig(
    model_type="deepseek_v2", vocab_size=102400, hidden_size=2048, num_hidden_layers=27, first_k_dense_replace=1, intermediate_size=10944,
    moe_intermediate_size=1408, n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6, n_group=1, topk_group=1, topk_method="greedy",
    scoring_func="softmax", norm_topk_prob=False, routed_scaling_factor=1.0, num_attention_heads=16, q_lora_rank=None,
    rope_scaling=_V2_YARN, max_position_embeddings=163840, num_nextn_predict_layers=0, bos_token_id=100000, eos_token_id=100001)  # fmt: skip
_V2 = _V2_LITE.with_(
    hidden_size=5120, num_hidden_layers=60, intermediate_size=12288, moe_intermediate_size=1536, n_routed_experts=160, n_group=8, topk_group=3,
    topk_method="group_limited_greedy", routed_scaling_factor=16.0, num_attention_heads=128, q_lora_rank=1536)  # fmt: skip
_MOONLIGHT = ModelConfig(
    vocab_size=163840, hidden_size=2048, num_hidden_layers=27, first_k_dense_replace=1, intermediate_size=11264, moe_intermediate_size=1408,
    n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6, n_group=1, topk_group=1, routed_scaling_factor=2.446, num_attention_heads=16,
    q_lora_rank=None, rms_norm_eps=1e-5, rope_theta=50000.0, max_position_embeddings=8192, num_nextn_predict_layers=0,
    bos_token_id=163584, eos_token_id=163586)  # fmt: skip
_KIMI_K2 = ModelConfig(
    model_type="kimi_k2", vocab_size=163840, first_k_dense_replace=1, n_routed_experts=384, n_group=1, topk_group=1, routed_scaling_factor=2.827,
    num_attention_heads=64, rope_theta=50000.0, rope_scaling=_K2_YARN, max_position_embeddings=131072, num_nextn_predict_layers=0,
    bos_token_id=163584, eos_token_id=163585)  # fmt: skip

_K2_COPIES = "as in copies of config.json; no primary source"
PRESETS: Mapping[str, Member] = MappingProxyType({
    "v3_671b": Member("DeepSeek-V3", _V3, FP8_QUANTIZATION),
    "v3_0324": Member("DeepSeek-V3-0324", _V3, FP8_QUANTIZATION),
    "v3_1": Member("DeepSeek-V3.1", _V3, MappingProxyType({**FP8_QUANTIZATION, "scale_fmt": "ue8m0"})),
    "r1": Member("DeepSeek-R1", _V3, FP8_QUANTIZATION),
    "v2_236b": Member("DeepSeek-V2", _V2),
    "v2_lite_16b": Member("DeepSeek-V2-Lite", _V2_LITE),
    "moonlight_16b": Member("Moonlight-16B-A3B", _MOONLIGHT, None, MappingProxyType({
        "eos_token_id": "the instruct model's, in a copy of its config.json; the base model's is not confirmed",
    })),
    "kimi_k2": Member("Kimi-K2", _KIMI_K2, FP8_QUANTIZATION, MappingProxyType({
        "rms_norm_eps": "copies of config.json have 1e-6 and 1e-5",
        "rope_scaling": f"factor 32 of 4096, beta 1 and 1, mscale 1 {_K2_COPIES}",
        "bos_token_id": _K2_COPIES,
        "eos_token_id": f"{_K2_COPIES}; the instruct model may end turns with another id",
    })),
})  # fmt: skip


def member(name: str) -> Member:
    """The named member of the family; ConfigError lists the names when it is unknown."""
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"preset ({name!r}) is not known; there are {', '.join(sorted(PRESETS))}") from None


def preset(name: str) -> ModelConfig:
    """The named configuration with plain weights; `member(name).released` has the published quantisation. ConfigError for an unknown name."""
    return member(name).config
