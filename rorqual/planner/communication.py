"""Bytes on the wires: all-to-all of MoE layers, pipeline sends, exchange over data parallelism (report section 3.2). No torch.

Dispatch carries a token's hidden state in FP8 with an FP32 scale per 128 channels, combine carries BF16. A token goes at most once to
each of the `topk_group` nodes that its experts live on, and from there over the node's own links (node-limited routing).
"""

from __future__ import annotations

from rorqual.config import ModelConfig


def dispatch_bytes(config: ModelConfig) -> int:
    """Payload of one token to one node: FP8 values and their scales; 7,392 for 671B."""
    return config.hidden_size + 4 * -(-config.hidden_size // 128)


def combine_bytes(config: ModelConfig) -> int:
    """Payload of one token's result from one node: BF16; 14,336 for 671B."""
    return 2 * config.hidden_size


def destinations(config: ModelConfig, ep: int, node_size: int) -> float:
    """Nodes (inside one node: devices) that a token is sent to, at most: limited by groups, by chosen experts and by how many there are.

    The published figures count every destination as remote, the own node included.
    """
    if ep <= 1 or not config.n_routed_experts:
        return 0.0
    places = ep / node_size if ep > node_size else ep
    limit = config.topk_group if config.n_group > 1 and ep > node_size else config.num_experts_per_tok
    return float(min(limit, config.num_experts_per_tok, places))


def all_to_all_bytes(config: ModelConfig, ep: int, node_size: int) -> float:
    """Bytes that a device sends per token and MoE layer in one direction, dispatch and combine; 86,912 for 671B at EP64."""
    return destinations(config, ep, node_size) * (dispatch_bytes(config) + combine_bytes(config))


def pipeline_bytes(config: ModelConfig, seq_len: int) -> int:
    """One micro-batch's activations between two stages, BF16."""
    return 2 * config.hidden_size * seq_len
