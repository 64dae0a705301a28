"""The tiny configuration that the field's failure cases are built on, about 0.3M parameters."""

from __future__ import annotations

from typing import Any

from rorqual.config import ModelConfig, RopeScaling

T0_YARN = RopeScaling(factor=4.0, original_max_position_embeddings=64, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0)


def t0(**changes: Any) -> ModelConfig:
    """T0 with some fields replaced: 3 layers, 8 routed and 1 shared expert, top-2 of 2 out of 4 groups, one MTP module, YaRN."""
    fields: dict[str, Any] = {
        "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 3, "first_k_dense_replace": 1, "intermediate_size": 160,
        "moe_intermediate_size": 32, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2,
        "num_attention_heads": 4, "q_lora_rank": 48, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
        "rope_theta": 10000.0, "rope_scaling": T0_YARN, "max_position_embeddings": 256, "num_nextn_predict_layers": 1,
        "routed_scaling_factor": 2.5, "norm_topk_prob": True, "tie_word_embeddings": False, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    return ModelConfig(**{**fields, **changes})
