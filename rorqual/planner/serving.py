"""Bounds of inference: how much cache, how large a batch, how fast a token can come, what a million tokens cost (report section 3.4).

Routed experts are spread over all devices; attention and all else is split over `tp` of them and copied to the gpus / tp groups, each
with requests of its own. The latent cache is one for all heads, so that every device of a group keeps its group's whole cache.
Decode is bound by the slowest of three: reading weights and cache from memory, arithmetic, and the all-to-all of every MoE layer. The
published reading of the last (ISCA 2025, section 2.3.2) counts 32 tokens a device, nine experts a token, FP8 out and BF16 back,
and two micro-batches of which one computes while the other sends: 14.76 ms a token on 50 GB/s links, 0.82 ms on 900 GB/s.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final

from rorqual.config import ModelConfig
from rorqual.errors import ConfigError
from rorqual.planner import communication as network
from rorqual.planner.communication import link
from rorqual.planner.flops import attention_flops_per_token, decode_flops_per_token, forward_flops_per_token
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
class Decode:
    """One decode step of `batch` requests: the least seconds possible, what binds it, and the rates and cost that follow."""

    batch: int
    seconds: float
    bound: str
    tokens_per_second_per_user: float
    tokens_per_second: float
    cost_per_million_output_tokens: float | None


@dataclass(frozen=True)
class ServingPlan:
    """Bounds for one model on some devices. Seconds are the least possible; rates follow from them. Bytes are of one device but for
    `weight_bytes`, which is one copy of the model."""

    weight_bytes: float
    tp: int
    weight_bytes_per_gpu: float
    cache_bytes_per_token: float
    cache_bytes_free: float
    largest_batch: int
    decode: tuple[Decode, ...]
    prefill_seconds: float
    prefill_bound: str
    prefill_tokens_per_second: float
    cost_per_million_input_tokens: float | None

    @property
    def largest(self) -> Decode:
        """The decode step of the largest batch."""
        return self.decode[-1]

    def as_json(self) -> dict[str, Any]:
        """Plain values under the field names."""
        return asdict(self)


def all_to_all_seconds(
    config: ModelConfig, link: float, tokens_per_device: float = 32, experts_per_token: int | None = None, hidden: float | None = None
) -> float:
    """One dispatch and combine of a MoE layer: (1 + 2 bytes) x tokens x experts x hidden / link. 120.96 microseconds in the published case."""
    experts = config.num_experts_per_tok + config.n_shared_experts if experts_per_token is None else experts_per_token
    return 3 * tokens_per_device * experts * (config.hidden_size if hidden is None else hidden) / link


def decode_seconds_per_token(config: ModelConfig, link: float) -> float:
    """The published communication bound: two micro-batches, every layer, hidden size taken as 7,000 for 7,168 as published ("7K").

    14.76 ms on 50 GB/s, 0.82 ms on 900 GB/s for 671B.
    """
    return 2 * config.num_hidden_layers * all_to_all_seconds(config, link, hidden=config.hidden_size // 1000 * 1000)


@dataclass(frozen=True)
class _Weights:
    """Bytes of the trunk: routed experts, and all else; FP8 where `fp8`."""

    experts: float
    rest: float
    moe_layers: int


def _weights(config: ModelConfig, fp8: bool) -> _Weights:
    moe = sum(not config.is_mtp(layer) for layer in config.moe_layers)
    experts = moe * config.n_routed_experts * count(config).expert * (1 + 4 / 16384 if fp8 else 2.0)
    return _Weights(experts, weight_bytes(config, fp8) - experts, moe)


def _per_gpu(config: ModelConfig, weights: _Weights, gpus: int, tp: int) -> float:
    """Weights on the fullest device: whole experts, and 1 / tp of all else."""
    held = -(-config.n_routed_experts // gpus) / config.n_routed_experts if config.n_routed_experts else 0.0
    return weights.experts * held + weights.rest / tp


def _splits(config: ModelConfig, device: Hardware, gpus: int) -> list[int]:
    """Ways to split attention that divide the devices, a node and the heads."""
    return [tp for tp in range(1, min(gpus, device.node_size) + 1) if gpus % tp == 0 and config.num_attention_heads % tp == 0]


def _largest_batch(config: ModelConfig, device: Hardware, weights: _Weights, gpus: int, tp: int, request: float) -> int:
    free = MEMORY_SHARE * device.memory - _per_gpu(config, weights, gpus, tp)
    return gpus // tp * max(0, int(free // request))


def plan_serving(
    config: ModelConfig,
    device: Hardware,
    gpus: int,
    context: int,
    *,
    fp8: bool = True,
    price: float | None = None,
    tp: int | None = None,
    fp8_cache: bool = False,
) -> ServingPlan:
    """Bounds on `gpus` devices for requests of `context` tokens each; `tp` None takes the split with the largest batch.

    ConfigError when weights, or one request, do not fit, with the number of devices that does.
    """
    if gpus < 1 or context < 1:
        raise ConfigError(f"gpus ({gpus}) and context ({context}) must be at least 1")
    fp8 = fp8 and device.fp8 > 0
    weights = _weights(config, fp8)
    splits = _splits(config, device, gpus)
    if tp is not None and tp not in splits:
        raise ConfigError(f"tp ({tp}) must divide gpus ({gpus}), the heads ({config.num_attention_heads}) and fit a node ({device.node_size}); use one of {', '.join(map(str, splits))}")  # fmt: skip
    per_token = cache_bytes_per_token(config, fp8_cache)
    request = per_token * context
    batches = {one: _largest_batch(config, device, weights, gpus, one, request) for one in (splits if tp is None else [tp])}
    tp = max(batches, key=lambda one: (batches[one], -one))
    if not batches[tp]:
        raise ConfigError(_too_small(config, device, weights, gpus, tp, request))
    largest, price = batches[tp], device.price if price is None else price
    sizes = sorted({min(gpus * each, largest) for each in (1, 8, 32, 128)} | {largest})
    decode = tuple(_decode(config, device, weights, gpus, tp, context, batch, per_token, price) for batch in sizes)
    limits = _prefill_seconds_per_token(config, device, weights, gpus, context)
    bound = max(limits, key=lambda name: limits[name])
    return ServingPlan(
        weight_bytes=weights.experts + weights.rest, tp=tp, weight_bytes_per_gpu=_per_gpu(config, weights, gpus, tp),
        cache_bytes_per_token=per_token, cache_bytes_free=MEMORY_SHARE * device.memory - _per_gpu(config, weights, gpus, tp),
        largest_batch=largest, decode=decode, prefill_seconds=context * limits[bound], prefill_bound=bound, prefill_tokens_per_second=1 / limits[bound],
        cost_per_million_input_tokens=None if price is None else gpus * price / 3600 * limits[bound] * 1e6,
    )  # fmt: skip


def _too_small(config: ModelConfig, device: Hardware, weights: _Weights, gpus: int, tp: int, request: float) -> str:
    enough = next(
        (
            n
            for n in range(gpus + 1, 4097)
            if any(_largest_batch(config, device, weights, n, one, request) for one in _splits(config, device, n))
        ),
        None,
    )
    what = f"use {enough} GPUs or more, or a shorter context" if enough else "use a device with more memory, or a shorter context"
    return (
        f"{gpus} x {device.name} have {device.memory / 1e9:,.0f} GB each, of which {MEMORY_SHARE:.0%} are for weights ({_per_gpu(config, weights, gpus, tp) / 1e9:,.0f} GB "
        f"a GPU, {(weights.experts + weights.rest) / 1e9:,.0f} GB in all) and at least one request's cache ({request / 1e9:,.2f} GB); {what}"
    )


def _decode(
    config: ModelConfig,
    device: Hardware,
    weights: _Weights,
    gpus: int,
    tp: int,
    context: int,
    batch: int,
    per_token: float,
    price: float | None,
) -> Decode:
    groups, tokens = gpus // tp, batch / gpus
    requests = -(-batch // groups)
    held = _per_gpu(config, weights, gpus, tp) - weights.rest / tp
    linear = decode_flops_per_token(config, 1)
    attention = decode_flops_per_token(config, context) - linear
    limits = {
        "memory": (weights.rest / tp + held * _touched(config, batch) + requests * context * cache_bytes_per_token(config))
        / device.memory_bandwidth,
        "compute": batch * (linear / device.linear_peak + attention / device.bf16) / gpus,
    }
    if gpus > 1 and config.n_routed_experts:
        limits["all-to-all"] = weights.moe_layers * all_to_all_seconds(config, link(device, gpus), tokens)
    bound = max(limits, key=lambda name: limits[name])
    per_second = batch / limits[bound]
    cost = None if price is None else gpus * price / 3600 / per_second * 1e6
    return Decode(batch, limits[bound], bound, 1 / limits[bound], per_second, cost)


def _prefill_seconds_per_token(config: ModelConfig, device: Hardware, weights: _Weights, gpus: int, context: int) -> dict[str, float]:
    """Least seconds per prompt token with all devices at work, by what binds: arithmetic, or dispatch and combine of two overlapping halves."""
    attention = attention_flops_per_token(config, context)
    linear = forward_flops_per_token(config, context) - attention - 2 * count(config).embedding  # only the last token meets the head
    limits = {"compute": (linear / device.linear_peak + attention / device.bf16) / gpus}
    if gpus > 1 and config.n_routed_experts:
        limits["all-to-all"] = weights.moe_layers * network.all_to_all_seconds(config, gpus, device) / gpus
    return limits


def _touched(config: ModelConfig, batch: int) -> float:
    """Share of the routed experts that a step of `batch` tokens reads, if routing is even: 1 - (1 - K/E)^batch."""
    if not config.n_routed_experts:
        return 0.0
    return 1 - (1 - config.num_experts_per_tok / config.n_routed_experts) ** batch


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
