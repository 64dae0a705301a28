"""Published members of the family that are no presets, for the tests of the planner."""

from __future__ import annotations

from rorqual.config import ModelConfig, preset

V3 = preset("v3_671b")
V2_LITE = preset("v2_lite_16b")
V2 = V2_LITE.with_(
    hidden_size=5120, num_hidden_layers=60, intermediate_size=12288, moe_intermediate_size=1536, n_routed_experts=160, n_group=8, topk_group=3,
    topk_method="group_limited_greedy", routed_scaling_factor=16.0, num_attention_heads=128, q_lora_rank=1536)  # fmt: skip
MOONLIGHT = ModelConfig(
    vocab_size=163840, hidden_size=2048, num_hidden_layers=27, first_k_dense_replace=1, intermediate_size=11264, moe_intermediate_size=1408,
    n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6, n_group=1, topk_group=1, routed_scaling_factor=2.446, num_attention_heads=16,
    q_lora_rank=None, rms_norm_eps=1e-5, rope_theta=50000.0, max_position_embeddings=8192, num_nextn_predict_layers=0)  # fmt: skip
KIMI_K2 = ModelConfig(
    model_type="kimi_k2", vocab_size=163840, first_k_dense_replace=1, n_routed_experts=384, n_group=1, topk_group=1, routed_scaling_factor=2.827,
    num_attention_heads=64, rope_theta=50000.0, num_nextn_predict_layers=0)  # fmt: skip
