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
