"""Floating-point operations per token, from the configuration.

A matrix weight costs 2 FLOP a token forward and 4 backward (gradients of input and weight). Attention scores and their product with
the values cost 2 h (d_qk + d_v) per visible key forward, three times that with backward; under the causal mask a token of a sequence
of T sees T/2 keys on average. Norms, softmax, SwiGLU's product, routing and the optimiser are left out, as everywhere in this field.

671B at T = 4096: 219.75 + 30.70 = 250.45 GF per token (249.7 from the published 385 TFLOPS). The often seen 250.46 also multiplies by six
the norms and router biases, which no GEMM touches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rorqual.config import ModelConfig
from rorqual.errors import ConfigError
from rorqual.planner.params import attention_weights, count

DECODE_FORMS: Final = ("absorbed", "expanded", "naive")
"""How attention over a cache can be computed: on the latents as they are, on keys and values made anew, or on cached ones."""


def attention_flops_per_token(config: ModelConfig, seq_len: int, layers: int | None = None, causal: bool = True) -> float:
    """Forward FLOP of the attention products per token, MLA in expanded form, over `layers` blocks (default: the trunk)."""
    if seq_len < 1:
        raise ConfigError(f"seq_len ({seq_len}) must be at least 1")
    layers = config.num_hidden_layers if layers is None else layers
    visible = seq_len / 2 if causal else seq_len
    return 2.0 * config.num_attention_heads * (config.qk_head_dim + config.v_head_dim) * visible * layers


def forward_flops_per_token(config: ModelConfig, seq_len: int, mtp: bool = False, causal: bool = True) -> float:
    """FLOP of one forward pass over a whole sequence of `seq_len`, per token; `mtp` adds the MTP modules and their use of the head."""
    parameters = count(config)
    weights = parameters.matmul + (parameters.mtp_matmul if mtp else 0)
    layers = config.num_blocks if mtp else config.num_hidden_layers
    return 2.0 * weights + attention_flops_per_token(config, seq_len, layers, causal)


def train_flops_per_token(config: ModelConfig, seq_len: int, mtp: bool = False, causal: bool = True) -> float:
    """FLOP of forward and backward per token; recomputation is not counted, so shares of a ceiling stay comparable.

    `causal=False` counts the full square, which the report's co-authors print as "non-causal" MFU (281.2 GF for 671B).
    """
    return 3.0 * forward_flops_per_token(config, seq_len, mtp, causal)


def decode_flops_per_token(config: ModelConfig, context: int, form: str = "absorbed", mtp: bool = False) -> float:
    """FLOP of one new token over `context` cached positions, itself among them.

        absorbed    2 weights + 2 h (2 c + r) t layers        W_UK and W_UV meet one token; scores and sums are over the latents
        expanded    2 weights + (2 h (d_qk + d_v) + 2 c h (d_nope + d_v)) t layers, one token's up-projection less: all keys and values anew
        naive       2 weights + 2 h (d_qk + d_v) t layers      with keys and values of every head cached (71 times the memory)

    c latent width, r rotary width, t context. Report section 2.1.1; V2 section 2.1.2. ConfigError for another form.
    """
    if context < 1:
        raise ConfigError(f"context ({context}) must be at least 1")
    if form not in DECODE_FORMS:
        raise ConfigError(f"decode form {form!r} is not known; there are {', '.join(DECODE_FORMS)}")
    config = config.settled()
    parameters, heads, latent = count(config), config.num_attention_heads, config.kv_lora_rank
    layers = config.num_blocks if mtp else config.num_hidden_layers
    up = heads * latent * (config.qk_nope_head_dim + config.v_head_dim)  # W_UK and W_UV of one block
    per_key = {
        "absorbed": heads * (2 * latent + config.qk_rope_head_dim),
        "naive": heads * (config.qk_head_dim + config.v_head_dim),
        "expanded": heads * (config.qk_head_dim + config.v_head_dim) + up,
    }[form]
    weights = parameters.matmul + (parameters.mtp_matmul if mtp else 0) - (layers * up if form == "expanded" else 0)
    return 2.0 * weights + 2.0 * per_key * context * layers


@dataclass(frozen=True)
class Module:
    """One kind of module in all its layers: parameters, those that one token uses, and its FLOP of one forward per token of a whole sequence."""

    name: str
    parameters: int
    active: int
    forward_flops: float

    @property
    def train_flops(self) -> float:
        """Forward and backward."""
        return 3 * self.forward_flops


def by_module(config: ModelConfig, seq_len: int, causal: bool = True) -> tuple[Module, ...]:
    """The model taken apart; parameters add up to `total` and `mtp`, FLOP to those with MTP. "attention products" have no parameters."""
    config = config.settled()
    sizes, layers = count(config), config.num_hidden_layers
    moe = sum(not config.is_mtp(layer) for layer in config.moe_layers)
    dense, weights = layers - moe, attention_weights(config)
    gate, shared, chosen = config.n_routed_experts * config.hidden_size, config.n_shared_experts * sizes.expert, config.num_experts_per_tok
    norms = layers * (sizes.attention - weights + 2 * config.hidden_size) + config.hidden_size
    depth = config.num_blocks - layers
    mtp = 2.0 * sizes.mtp_matmul + (attention_flops_per_token(config, seq_len, depth, causal) if depth else 0.0)
    found = [
        Module("embedding", sizes.embedding, sizes.embedding, 0.0),
        Module("attention projections", layers * weights, layers * weights, 2.0 * layers * weights),
        Module("attention products", 0, 0, attention_flops_per_token(config, seq_len, layers, causal)),
        Module("dense FFN", dense * sizes.dense_ffn, dense * sizes.dense_ffn, 2.0 * dense * sizes.dense_ffn),
        Module(
            "routed experts", moe * config.n_routed_experts * sizes.expert, moe * chosen * sizes.expert, 2.0 * moe * chosen * sizes.expert
        ),
        Module("shared experts", moe * shared, moe * shared, 2.0 * moe * shared),
        Module("routers", moe * sizes.router, moe * sizes.router, 2.0 * moe * gate),
        Module("norms", norms, norms, 0.0),
        Module("head", sizes.head, sizes.head, 2.0 * sizes.embedding),
        Module("MTP modules", sizes.mtp, sizes.mtp_active, mtp),
    ]
    return tuple(one for one in found if one.parameters or one.forward_flops)
