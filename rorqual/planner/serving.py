"""Bounds of inference: how much cache, how large a batch, how fast a token can come, what a million tokens cost (report section 3.4).

Decode is bound by the slowest of three: reading weights and cache from memory, arithmetic, and the all-to-all of every MoE layer. The
published reading of the last (ISCA 2025, section 2.3.2) counts 32 tokens a device, nine experts a token, FP8 out and BF16 back,
and two micro-batches of which one computes while the other sends: 14.76 ms a token on 50 GB/s links, 0.82 ms on 900 GB/s.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from rorqual.config import ModelConfig
from rorqual.errors import ConfigError
from rorqual.planner.flops import forward_flops_per_token
from rorqual.planner.hardware import Hardware
from rorqual.planner.memory import cache_bytes_per_token, weight_bytes
from rorqual.planner.params import count

MEMORY_SHARE: Final = 0.9
"""Share of the memory that weights and cache may take; the rest is for activations and the runtime (an assumption)."""

UNITS: Final = MappingProxyType({
    "prefill": MappingProxyType({"gpus": 32, "nodes": 4, "attention": "TP4 with sequence parallelism, DP8", "experts": "EP32", "experts_per_gpu": "8 and 1 redundant"}),
    "decode": MappingProxyType({"gpus": 320, "nodes": 40, "attention": "TP4 with sequence parallelism, DP80", "experts": "EP320", "experts_per_gpu": "1; 64 GPUs hold redundant and shared ones"}),
})  # fmt: skip
"""Report section 3.4: the smallest deployment unit of each phase."""

PRODUCTION_DAY: Final = MappingProxyType(
    {
        "input_tokens": 608e9,
        "cached_tokens": 342e9,
        "output_tokens": 168e9,
        "nodes": 226.75,
        "gpus_per_node": 8,
        "price": 2.0,
        "cost_usd": 87_072,
    }
)
"""The authors' published day, February 2025: V3 and R1 together, all inference."""


@dataclass(frozen=True)
class ServingPlan:
    """Bounds for one model on some devices. Seconds are the least possible; rates follow from them."""

    weight_bytes: float
    cache_bytes_per_token: float
    cache_bytes_free: float
    largest_batch: int
    decode_seconds: float
    decode_bound: str
    tokens_per_second_per_user: float
    tokens_per_second: float
    prefill_seconds: float
    cost_per_million_output_tokens: float | None

    def as_json(self) -> dict[str, Any]:
        """Plain values under the field names."""
        return dict(self.__dict__)


def all_to_all_seconds(
    config: ModelConfig, link: float, tokens_per_device: int = 32, experts_per_token: int | None = None, hidden: float | None = None
) -> float:
    """One dispatch and combine of a MoE layer: (1 + 2 bytes) x tokens x experts x hidden / link. 120.96 microseconds in the published case."""
    experts = config.num_experts_per_tok + config.n_shared_experts if experts_per_token is None else experts_per_token
    return 3 * tokens_per_device * experts * (config.hidden_size if hidden is None else hidden) / link


def decode_seconds_per_token(config: ModelConfig, link: float) -> float:
    """The published communication bound: two micro-batches, every layer, hidden size taken as 7,000 for 7,168 as published ("7K").

    14.76 ms on 50 GB/s, 0.82 ms on 900 GB/s for 671B.
    """
    return 2 * config.num_hidden_layers * all_to_all_seconds(config, link, hidden=config.hidden_size // 1000 * 1000)


def plan_serving(
    config: ModelConfig, device: Hardware, gpus: int, context: int, *, fp8: bool = True, price: float | None = None
) -> ServingPlan:
    """Bounds on `gpus` devices for requests of `context` tokens each. ConfigError when weights, or one request, do not fit."""
    if gpus < 1 or context < 1:
        raise ConfigError(f"gpus ({gpus}) and context ({context}) must be at least 1")
    fp8 = fp8 and device.fp8 > 0
    weights, per_token = weight_bytes(config, fp8), cache_bytes_per_token(config)
    free = MEMORY_SHARE * gpus * device.memory - weights
    if free < per_token * context:
        need = -(-(weights + per_token * context) // (MEMORY_SHARE * device.memory))
        raise ConfigError(
            f"{gpus} x {device.name} have {gpus * device.memory / 1e9:,.0f} GB, of which {MEMORY_SHARE:.0%} are for weights ({weights / 1e9:,.0f} GB) and one "
            f"request's cache ({per_token * context / 1e9:,.2f} GB); use {need:.0f} GPUs or more, or a shorter context"
        )
    batch = int(free // (per_token * context))
    parameters = count(config)
    touched = _touched(config, batch)
    read = weights * touched + batch * per_token * context
    limits = {
        "memory": read / (gpus * device.memory_bandwidth),
        "compute": batch * forward_flops_per_token(config, 2 * context) / (gpus * device.linear_peak),
    }
    if gpus > device.node_size and parameters.expert:
        limits["all-to-all"] = decode_seconds_per_token(config, device.scale_out) * max(1.0, batch / gpus / 32)
    bound = max(limits, key=lambda name: limits[name])
    seconds = limits[bound]
    price = device.price if price is None else price
    per_second = batch / seconds
    return ServingPlan(
        weights, per_token, free, batch, seconds, bound, 1 / seconds, per_second,
        context * forward_flops_per_token(config, context) / (gpus * device.linear_peak),
        None if price is None else gpus * price / 3600 / per_second * 1e6,
    )  # fmt: skip


def _touched(config: ModelConfig, batch: int) -> float:
    """Share of the weights that a step of `batch` tokens reads, if routing is even: 1 - (1 - K/E)^batch of the experts, all of the rest."""
    parameters = count(config)
    if not config.n_routed_experts:
        return 1.0
    moe = sum(not config.is_mtp(layer) for layer in config.moe_layers)
    experts = moe * config.n_routed_experts * parameters.expert
    missed = (1 - config.num_experts_per_tok / config.n_routed_experts) ** batch
    return 1 - experts * missed / parameters.total


def production_day() -> dict[str, float]:
    """What the published day says about a million tokens, by counting all cost to the output, or to input and output alike."""
    day = PRODUCTION_DAY
    hours = day["nodes"] * day["gpus_per_node"] * 24
    return {
        "cost_usd": hours * day["price"],
        "per_million_output_tokens": hours * day["price"] / day["output_tokens"] * 1e6,
        "per_million_tokens": hours * day["price"] / (day["input_tokens"] + day["output_tokens"]) * 1e6,
        "cache_hit_share": day["cached_tokens"] / day["input_tokens"],
    }
