"""Parameters of a configuration: total, active per token, MTP, each under a named convention; cache values per token.

Report section 4.2 ("671B total, 37B activated"). Published counts differ by convention, so none is called *the* count:

    total                               trunk, embedding, head, router biases; MTP modules are not in it
    active                              what one token uses of `total`: K_r routed experts, everything else whole
    active_without_embedding            the same without the input embedding, which is looked up and not multiplied
    active_without_embedding_and_head   the blocks and the final norm alone
    mtp                                 what the MTP modules hold of their own, without copies of embedding and head

For 671B: 671,026,419,200; 37,552,297,472; 36,625,618,432; 35,698,939,392; 11,610,068,224. A checkpoint counter says 685B because it
adds the MTP layer, its copies of embedding and head, and the FP8 scales (planner/inventory.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from rorqual.config import ModelConfig


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters; the conventions are those of the module docstring. Tied embeddings count once, as embedding and as head."""

    total: int
    active: int
    active_without_embedding: int
    active_without_embedding_and_head: int
    mtp: int
    mtp_active: int
    """What one token uses of `mtp`, embedding and head not counted."""
    matmul: int
    """Weights that one token is multiplied with in the main model, head included: norms, biases and the embedding are not."""
    mtp_matmul: int
    """The same for all MTP modules, the head counted once for each."""
    embedding: int
    head: int
    attention: int
    """One block's MLA, latent norms included."""
    dense_ffn: int
    expert: int
    """One routed expert; the shared experts of a block are `n_shared_experts` of them, fused."""
    router: int
    """One block's router: weight and, in V3's kind, selection bias."""


def has_router_bias(config: ModelConfig) -> bool:
    """Whether routers carry `e_score_correction_bias` (V3's bias-corrected selection does, V2's gates do not)."""
    return config.topk_method == "noaux_tc"


def attention_weights(config: ModelConfig) -> int:
    """Matrix weights of one MLA block, without its latent norms (report eq. 1-11)."""
    d, heads, rank = config.hidden_size, config.num_attention_heads, config.q_lora_rank
    query = d * heads * config.qk_head_dim if rank is None else d * rank + rank * heads * config.qk_head_dim
    down = d * (config.kv_lora_rank + config.qk_rope_head_dim)
    up = config.kv_lora_rank * heads * (config.qk_nope_head_dim + config.v_head_dim)
    return query + down + up + heads * config.v_head_dim * d


def count(config: ModelConfig) -> ParameterCount:
    """Counts every parameter of the model a configuration describes, router biases among them.

    Raises ConfigError when `q_lora_rank` is still unknown. Equals the sum over the state dict for any shape (field case F04).
    """
    config = config.settled()
    d, blocks = config.hidden_size, config.num_blocks
    attention_matmul = attention_weights(config)
    latent_norms = config.kv_lora_rank + (config.q_lora_rank or 0)
    dense = 3 * d * config.intermediate_size
    expert = 3 * d * config.moe_intermediate_size if config.n_routed_experts else 0
    gate = config.n_routed_experts * d
    bias = config.n_routed_experts if has_router_bias(config) else 0
    shared = config.n_shared_experts * expert
    num_moe = sum(not config.is_mtp(layer) for layer in config.moe_layers)
    num_dense = config.num_hidden_layers - num_moe
    num_mtp = blocks - config.num_hidden_layers
    norms = 2 * d + latent_norms

    moe_matmul = attention_matmul + config.num_experts_per_tok * expert + shared + gate if config.n_routed_experts else 0
    dense_matmul = attention_matmul + dense
    idle = (config.n_routed_experts - config.num_experts_per_tok) * expert if config.n_routed_experts else 0
    trunk = num_dense * (dense_matmul + norms) + num_moe * (moe_matmul + norms + bias) + d

    mtp_moe = bool(config.n_routed_experts)
    module_matmul = 2 * d * d + (moe_matmul if mtp_moe else dense_matmul)
    mtp_active = num_mtp * (module_matmul + norms + (bias if mtp_moe else 0) + 3 * d)

    embedding = config.vocab_size * d
    head = 0 if config.tie_word_embeddings else embedding
    active = trunk + embedding + head
    return ParameterCount(
        total=active + num_moe * idle,
        active=active,
        active_without_embedding=trunk + embedding,
        active_without_embedding_and_head=trunk,
        mtp=mtp_active + num_mtp * idle,
        mtp_active=mtp_active,
        matmul=num_dense * dense_matmul + num_moe * moe_matmul + embedding,
        mtp_matmul=num_mtp * (module_matmul + embedding),
        embedding=embedding,
        head=head,
        attention=attention_matmul + latent_norms,
        dense_ffn=dense,
        expert=expert,
        router=gate + bias,
    )


def cache_values_per_token(config: ModelConfig, mtp: bool = False) -> int:
    """Numbers that the latent cache keeps per token: (d_c + d_h^R) in each block, the MTP modules' too if asked.

    Report section 2.1.1; 35,136 for 671B, which is 70,272 bytes in BF16.
    """
    blocks = config.num_blocks if mtp else config.num_hidden_layers
    return blocks * (config.kv_lora_rank + config.qk_rope_head_dim)


def cache_schemes(config: ModelConfig) -> dict[str, int]:
    """Numbers per token that other caches of the same heads would keep, beside MLA's (report section 2.1.1; V2 table 1).

    671B: mha 1,998,848 (2 h d_h), naive_mla 2,498,560 (keys and values of every head), gqa_8 124,928, mqa 15,616, mla 35,136.
    """
    heads, width = config.num_attention_heads, config.v_head_dim
    per_layer = {
        "mha": 2 * heads * width,
        "naive_mla": heads * (config.qk_head_dim + width),
        "gqa_8": 2 * min(8, heads) * width,
        "mqa": 2 * width,
        "mla": config.kv_lora_rank + config.qk_rope_head_dim,
    }
    return {name: config.num_hidden_layers * values for name, values in per_layer.items()}
