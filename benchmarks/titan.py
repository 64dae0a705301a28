"""torchtitan's DeepSeek-V3 as a peer of train.py, on a CPU with FP32 experts.

torchtitan 0.3.0 does not train this model on a CPU as it is: its model imports triton, which the CPU build of torch lacks; its
attention is flex or varlen, and flex has no gradient on a CPU; its experts compute in BF16. So triton is put beside it, its own
module of scaled dot product attention is taken, and its experts stay in FP32. It and what it imports go into a folder of their own:

    pip install --no-deps --target DIR torchtitan==0.3.0 spmd_types==0.2.3 einops tomli torchdata torch_checkpointing triton==3.9.0
    PYTHONPATH=DIR python benchmarks/train.py --config nano --peer torchtitan
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from rorqual.config import ModelConfig


class Titan(torch.nn.Module):
    """torchtitan's model with the call of a transformers one."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        """Logits [b, s, v]; there is no cache."""
        return self.model(input_ids, None, None)


def _experts(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """torchtitan's grouped experts without the casts to BF16."""
    offs = counts.cumsum(0).to(torch.int32)
    gate, up = (torch._grouped_mm(rows, weight.transpose(-2, -1), offs=offs) for weight in (self.w1_EFD, self.w3_EFD))
    return torch._grouped_mm(F.silu(gate) * up, self.w2_EDF.transpose(-2, -1), offs=offs)


def titan_peer(config: ModelConfig) -> tuple[torch.nn.Module, str]:
    """A model of the same shape, with torchtitan's initial weights."""
    import torchtitan.models.deepseek_v3 as titan
    from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm, attention, moe

    moe.GroupedExperts.forward = _experts
    d, vocabulary = config.hidden_size, config.vocab_size
    layers = titan._build_dsv3_layers(
        n_layers=config.num_hidden_layers, n_dense_layers=config.first_k_dense_replace, dim=d, n_heads=config.num_attention_heads,
        q_lora_rank=config.q_lora_rank or 0, kv_lora_rank=config.kv_lora_rank, qk_nope_head_dim=config.qk_nope_head_dim,
        qk_rope_head_dim=config.qk_rope_head_dim, v_head_dim=config.v_head_dim, mscale=1.0, dense_hidden_dim=config.intermediate_size,
        moe_hidden_dim=config.moe_intermediate_size, num_experts=config.n_routed_experts, num_shared_experts=config.n_shared_experts,
        router_top_k=config.num_experts_per_tok, router_score_func="sigmoid", router_num_expert_groups=config.n_group,
        router_num_limited_groups=config.topk_group, router_route_scale=config.routed_scaling_factor, router_route_norm=True,
        attn_backend="flex", moe_comm_backend="standard", non_blocking_capacity_factor=None,
        rope=ComplexRoPE.Config(dim=config.qk_rope_head_dim, max_seq_len=config.max_position_embeddings, theta=config.rope_theta),
    )  # fmt: skip
    for layer in layers:
        layer.attention.inner_attention = attention.ScaledDotProductAttention.Config()
    model = titan.DeepSeekV3Model.Config(
        vocab_size=vocabulary, dim=d, layers=layers, mtp_layers=[],
        tok_embeddings=Embedding.Config(num_embeddings=vocabulary, embedding_dim=d, param_init=titan._EMBEDDING_INIT),
        norm=RMSNorm.Config(normalized_shape=d, param_init=titan._NORM_INIT),
        lm_head=Linear.Config(in_features=d, out_features=vocabulary, param_init=titan._output_linear_init(d)),
    ).build()  # fmt: skip
    model.init_states()
    return Titan(model).train(), "torchtitan, SDPA, FP32 experts, weights of its own"
