"""Floating-point operations per token, from the configuration.

A matrix weight costs 2 FLOP a token forward and 4 backward (gradients of input and weight). Attention scores and their product with
the values cost 2 h (d_qk + d_v) per visible key forward, three times that with backward; under the causal mask a token of a sequence
of T sees T/2 keys on average. Norms, softmax, SwiGLU's product, routing and the optimiser are left out, as everywhere in this field.

671B at T = 4096: 219.75 + 30.70 = 250.45 GF per token (249.7 from the published 385 TFLOPS). The often seen 250.46 also multiplies by six
the norms and router biases, which no GEMM touches.
"""

from __future__ import annotations

from rorqual.config import ModelConfig
from rorqual.errors import ConfigError
from rorqual.planner.params import count

DECODE_FORMS = ("absorbed", "expanded", "naive")
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
