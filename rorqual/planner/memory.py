"""Memory of one device in training and in inference, by part (report sections 3.2.3 and 3.3.3). Bytes. No torch.

Training state under ZeRO-1: every device holds the weights of its stages (twice under DualPipe) and an FP32 gradient of them; FP32
master weights and moments are shared out over the replicas. Under zero 3 weights and gradients are too, and whole for a block or two. Activations are what one chunk keeps for its backward, times the
chunks that the schedule holds at once (the simulator's count). Recomputed parts (norms, MLA's up-projections, SwiGLU) are not kept.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final

from rorqual.config import ModelConfig
from rorqual.errors import ConfigError
from rorqual.planner.activations import POLICIES, report_block
from rorqual.planner.communication import combine_bytes, dispatch_bytes
from rorqual.planner.hardware import Hardware
from rorqual.planner.layout import Layout, stage_layers
from rorqual.planner.params import cache_values_per_token, count
from rorqual.planner.schedule import SCHEDULES
from rorqual.planner.simulate import Costs, simulate
from rorqual.planner.step import held_parameters, rank_stages

FRAGMENTATION: Final = 0.05
"""Share of the sum set aside for the allocator's gaps; an assumption, not a measurement."""
_MOMENTS: Final = {"bf16": 4, "fp32": 8}


@dataclass(frozen=True)
class Memory:
    """Bytes by part on the device that holds most; `available` is the device's."""

    parts: dict[str, float]
    available: float
    chunks_in_flight: int

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the sum is within the device's memory."""
        return self.total <= self.available

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"parts": dict(self.parts), "total": self.total, "available": self.available, "fits": self.fits,
                "chunks_in_flight": self.chunks_in_flight}  # fmt: skip


def training_memory(
    config: ModelConfig, device: Hardware, layout: Layout, seq_len: int, batch_sequences: int, *,
    recompute: tuple[str, ...] = POLICIES, fp8: bool = True, moments: str = "bf16", mtp: bool = True,
) -> Memory:  # fmt: skip
    """The device that needs most; the layout must have passed `layout.check`."""
    if moments not in _MOMENTS:
        raise ConfigError(f"moments {moments!r} must be bf16 or fp32")
    fp8 = fp8 and device.fp8 > 0
    per_stage = [_stage_activations(config, layout, stage, seq_len, recompute, fp8, mtp) for stage in range(layout.num_stages)]
    shortened = min(batch_sequences // layout.dp, 2 * layout.pp + 2)  # a schedule repeats itself: two rounds show its peak
    in_flight = (1,) if layout.pp == 1 else _in_flight(layout.schedule, layout.pp, shortened)
    found = []
    for (experts, rest), stages, chunks in zip(held_parameters(config, layout, mtp), rank_stages(layout), in_flight, strict=True):
        shared_out = experts / layout.replicas + rest / layout.dp
        held, gathered = (experts + rest, 0.0) if layout.zero == 1 else (shared_out, _gathered(config, layout))
        heads = (layout.num_stages - 1 in stages) * (1 + (config.num_nextn_predict_layers if mtp else 0))
        parts = {
            "weights": 2.0 * held,
            "gathered": (2.0 + 4.0) * gathered,
            "fp8_copies": (held if layout.zero == 1 else gathered) if fp8 else 0.0,
            "gradients": 4.0 * held,
            "master": 4.0 * shared_out,
            "moments": _MOMENTS[moments] * shared_out,
            "activations": chunks * sum(per_stage[stage] for stage in stages) / len(stages),
            "logits": 4.0 * config.vocab_size * seq_len * heads,
            "dispatch_buffers": _buffers(config, layout, seq_len, fp8),
        }
        parts["fragmentation"] = FRAGMENTATION * sum(parts.values())
        found.append(Memory(parts, device.memory, chunks))
    return max(found, key=lambda memory: memory.total)


def _stage_activations(
    config: ModelConfig, layout: Layout, stage: int, seq_len: int, recompute: tuple[str, ...], fp8: bool, mtp: bool
) -> float:
    layers = list(stage_layers(config, layout.num_stages)[stage])
    if mtp and stage == layout.num_stages - 1:
        layers += range(config.num_hidden_layers, config.num_blocks)
    return seq_len * sum(sum(report_block(config, layer, recompute, fp8).values()) for layer in layers)


@functools.cache
def _in_flight(schedule: str, ranks: int, micro_batches: int) -> tuple[int, ...]:
    """Most chunks that each rank holds at once, from the simulator."""
    return simulate(SCHEDULES[schedule](ranks, micro_batches), Costs(1.0, 2.0, 1.0)).peak_in_flight


def _gathered(config: ModelConfig, layout: Layout) -> float:
    """Parameters that are whole at a time where they are shared out: the largest block, and the one fetched ahead; or the embedding."""
    parameters = count(config)
    ffn = max(
        config.n_routed_experts / layout.ep * parameters.expert + config.n_shared_experts * parameters.expert + parameters.router,
        parameters.dense_ffn,
    )
    return max(2 * (parameters.attention + ffn), parameters.embedding)


def _buffers(config: ModelConfig, layout: Layout, seq_len: int, fp8: bool) -> float:
    """Rows received from other devices before and after the experts, one layer's worth of both directions."""
    if layout.ep == 1:
        return 0.0
    return float(seq_len * config.num_experts_per_tok * (dispatch_bytes(config, fp8) + combine_bytes(config)))


# ---------------------------------------------------------------------- inference


def weight_bytes(config: ModelConfig, fp8: bool) -> float:
    """Weights of the trunk as served: Linears in FP8 with their scales, embedding, head and routers in BF16; or all in BF16."""
    parameters = count(config)
    plain = parameters.embedding + parameters.head + len([x for x in config.moe_layers if not config.is_mtp(x)]) * parameters.router
    return 2.0 * plain + (1 + 4 / 16384 if fp8 else 2.0) * (parameters.total - plain)


def cache_bytes_per_token(config: ModelConfig, fp8: bool = False) -> float:
    """Latent cache of one token in all layers; 70,272 for 671B in BF16.

    fp8: latents in FP8 with an FP32 scale per 128 values, the rotary key in BF16: 656 bytes a layer, 40,016 for 671B.
    """
    if not fp8:
        return 2.0 * cache_values_per_token(config)
    scales = -(-config.kv_lora_rank // 128)
    return float(config.num_hidden_layers * (config.kv_lora_rank + 4 * scales + 2 * config.qk_rope_head_dim))
