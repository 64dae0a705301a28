"""Bytes on the wires and their time on a network of two levels: all-to-all of MoE layers, pipeline sends, exchange over data
parallelism (report section 3.2). No torch.

Dispatch carries a token's hidden state in FP8 with an FP32 scale per 128 channels (BF16 where the device has no FP8), combine carries
BF16. A token goes at most once to each of the `topk_group` nodes that its experts live on, over the network between nodes, and from there
over the node's own links to every chosen expert (node-limited routing). Both levels work at the same time: the slower decides.
"""

from __future__ import annotations

from typing import Final

from rorqual.config import ModelConfig
from rorqual.planner.hardware import Hardware

GRADIENT_REDUCED: Final = 4
"""Bytes per parameter of a reduced gradient: FP32 (report section 3.3.3)."""
WEIGHT_GATHERED: Final = 2
"""Bytes per parameter of a gathered weight: BF16."""


def dispatch_bytes(config: ModelConfig, fp8: bool = True) -> int:
    """Payload of one token to one destination: FP8 values and their scales; 7,392 for 671B. BF16 without FP8."""
    return config.hidden_size + 4 * -(-config.hidden_size // 128) if fp8 else 2 * config.hidden_size


def combine_bytes(config: ModelConfig) -> int:
    """Payload of one token's result from one destination: BF16; 14,336 for 671B."""
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


def all_to_all_bytes(config: ModelConfig, ep: int, node_size: int, fp8: bool = True) -> float:
    """Bytes that a device sends per token and MoE layer in one direction, dispatch and combine; 86,912 for 671B at EP64."""
    return destinations(config, ep, node_size) * (dispatch_bytes(config, fp8) + combine_bytes(config))


def all_to_all_seconds(config: ModelConfig, ep: int, device: Hardware) -> float:
    """Seconds per token and MoE layer of dispatch and combine in one direction: the slower of the two levels of the network.

    Inside a node a copy goes to each device with a chosen expert, at most one for each choice.
    """
    fp8 = device.fp8 > 0
    sent = all_to_all_bytes(config, ep, device.node_size, fp8)
    if ep <= device.node_size:
        return sent / device.scale_up
    forwarded = min(config.num_experts_per_tok, ep) * (dispatch_bytes(config, fp8) + combine_bytes(config))
    inside = forwarded / device.scale_up if device.node_size > 1 else 0.0
    return max(sent / device.scale_out, inside)


def pipeline_bytes(config: ModelConfig, seq_len: int) -> int:
    """One micro-batch's activations between two stages, BF16."""
    return 2 * config.hidden_size * seq_len


def exchanged(ranks: int) -> float:
    """Share of a tensor that each of `ranks` devices sends in a gather or a reduction with sharing out: (n - 1) / n."""
    return (ranks - 1) / ranks


def zero1_bytes(held: float, ranks: int) -> float:
    """Sent per step and device for `held` parameters replicated `ranks` times: gradients reduced in FP32, new weights gathered in BF16."""
    return (GRADIENT_REDUCED + WEIGHT_GATHERED) * held * exchanged(ranks)


def fsdp_bytes(held: float, ranks: int) -> tuple[float, float]:
    """(forward, backward) bytes sent per micro-batch where parameters are shared out (FSDP): weights gathered in each, gradients reduced."""
    return WEIGHT_GATHERED * held * exchanged(ranks), (WEIGHT_GATHERED + GRADIENT_REDUCED) * held * exchanged(ranks)


def link(device: Hardware, ranks: int) -> float:
    """Bytes per second between `ranks` devices: the node's own links while one node holds them all."""
    return device.scale_out if ranks > device.node_size else device.scale_up
