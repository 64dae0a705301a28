"""What a training run costs: hours, dollars, days, tokens a day, share of the peak; beside the published figures (report table 1).

Two kinds of numbers, never mixed: `arithmetic` follows from published inputs alone (hours times price, tokens over step time), a
`Prediction` from configuration, device and layout through the step model. The published cost leaves out research, ablations,
failed runs, data, staff, and everything that is not the rent of GPUs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final

from rorqual.config import ModelConfig
from rorqual.planner.flops import train_flops_per_token
from rorqual.planner.hardware import Hardware
from rorqual.planner.layout import Layout, check
from rorqual.planner.step import ATTENTION_EFFICIENCY, StepTime, training_step


@dataclass(frozen=True)
class Published:
    """Published figures of DeepSeek-V3: report table 1 and section 4.2; the authors' ISCA 2025 paper, tables 2 and 4 (2,048 H800)."""

    hours_pretraining: int = 2_664_000
    hours_context_extension: int = 119_000
    hours_post_training: int = 5_000
    price: float = 2.0
    gpus: int = 2048
    layout: str = "pp16,dp128,ep64"
    tokens: int = 14_800_000_000_000
    batch_sequences: int = 15360
    sequence_length: int = 4096
    step_seconds: float = 19.926
    phases: tuple[tuple[str, float], ...] = (
        ("1F", 1.13),
        ("1B", 1.99),
        ("1W", 0.48),
        ("1F1B", 13.95),
        ("bubble", 2.06),
        ("optimizer", 0.29),
    )
    tokens_per_day: float = 272.80e9
    mfu_causal: float = 0.3894
    mfu_non_causal: float = 0.4373
    tflops_causal: float = 385.0
    tflops_non_causal: float = 432.0
    gflop_per_token: float = 250.0
    hours_per_trillion_tokens: int = 180_000

    @property
    def hours(self) -> int:
        """GPU hours of all phases."""
        return self.hours_pretraining + self.hours_context_extension + self.hours_post_training


REPORT: Final = Published()

LEFT_OUT: Final = (
    "research and ablations before the run", "runs that failed or were thrown away", "data: collection, cleaning, licences", "staff",
    "buying the hardware, building the cluster, power and network where they are not in the price", "evaluation and serving",
)  # fmt: skip
"""What the published $5.576M does not contain (report section 1 names the first)."""

V2_HOURS_PER_TRILLION: Final = 172_800
DENSE_67B_HOURS_PER_TRILLION: Final = 300_600
"""H800 hours per trillion tokens of DeepSeek-V2 and of the dense 67B model (V2 section 3.2.3): 42.5 % fewer, where FLOP alone would say
69 % (20.9B active parameters to 67B): sparse models reached a lower share of the peak."""

EXTENSION: Final = ((32768, 1920, 1000), (131072, 480, 1000))
"""Context extension (report section 4.3): length, sequences a step, steps."""


@dataclass(frozen=True)
class Prediction:
    """A run as the model predicts it. Hours are of one GPU; `mfu` is the share of the BF16 peak, attention counted causal or in full."""

    gpu_hours_total: float
    gpu_hours_pretraining: float
    gpu_hours_context_extension: float
    gpu_hours_post_training: float
    gpu_hours_per_trillion_tokens: float
    cost_usd: float | None
    days: float
    step_seconds: float
    tokens_per_step: int
    steps: float
    tokens_per_day: float
    gflop_per_token: float
    mfu_causal: float
    mfu_non_causal: float
    phases: dict[str, float]
    exposed_communication: float

    def as_json(self) -> dict[str, Any]:
        """Plain values under the field names."""
        return asdict(self)


def predict(
    config: ModelConfig, device: Hardware, layout: Layout, *, tokens: float, batch_sequences: int, seq_len: int, price: float | None = None,
    extension: bool = False, post_training_hours: float = 0.0,
) -> tuple[Prediction, StepTime]:  # fmt: skip
    """Time and cost of training on `tokens` tokens. ConfigError for a layout that cannot run.

    `extension` adds the report's two context phases, `post_training_hours` is an input. Days are those of the pre-training.
    """
    check(layout, config, batch_sequences)
    step = training_step(config, device, layout, seq_len, batch_sequences)
    per_step = batch_sequences * seq_len
    gpu_seconds_per_token = layout.gpus * step.seconds / per_step
    pretraining = tokens * gpu_seconds_per_token / 3600
    extended = sum(n * length * count * _seconds_at(config, device, gpu_seconds_per_token, seq_len, length) / 3600 for length, n, count in EXTENSION) if extension else 0.0  # fmt: skip
    total = pretraining + extended + post_training_hours
    price = device.price if price is None else price
    causal, full = (train_flops_per_token(config, seq_len, causal=causal) for causal in (True, False))
    achieved = 1 / (gpu_seconds_per_token * device.bf16)
    return Prediction(
        gpu_hours_total=total, gpu_hours_pretraining=pretraining, gpu_hours_context_extension=extended, gpu_hours_post_training=post_training_hours,
        gpu_hours_per_trillion_tokens=1e12 * gpu_seconds_per_token / 3600, cost_usd=None if price is None else total * price,
        days=pretraining / layout.gpus / 24, step_seconds=step.seconds, tokens_per_step=per_step, steps=tokens / per_step,
        tokens_per_day=86400 * per_step / step.seconds, gflop_per_token=causal / 1e9, mfu_causal=causal * achieved, mfu_non_causal=full * achieved,
        phases=step.phases, exposed_communication=step.exposed_communication,
    ), step  # fmt: skip


def _seconds_at(config: ModelConfig, device: Hardware, base: float, seq_len: int, longer: int) -> float:
    """GPU-seconds per token at another length: the base plus the attention that the length adds (forward, and three times that backward)."""
    added = train_flops_per_token(config, longer) - train_flops_per_token(config, seq_len)
    return base + added / 3 * 4 / (ATTENTION_EFFICIENCY * device.bf16)


def report_arithmetic(v3: ModelConfig) -> dict[str, Any]:
    """What follows from the published inputs and the configuration `v3`, without a model of anything."""
    known = REPORT
    by_phase = {
        "pretraining": known.hours_pretraining,
        "context_extension": known.hours_context_extension,
        "post_training": known.hours_post_training,
    }
    rate = known.batch_sequences * known.sequence_length / known.step_seconds
    per_trillion = known.hours_pretraining / (known.tokens / 1e12)
    return {
        "gpu_hours": by_phase,
        "gpu_hours_total": known.hours,
        "cost_usd": known.hours * known.price,
        "cost_usd_by_phase": {name: hours * known.price for name, hours in by_phase.items()},
        "gpu_hours_per_trillion_tokens": per_trillion,
        "gpu_hours_per_trillion_tokens_from_step": known.gpus * 1e12 / rate / 3600,
        "days_per_trillion_tokens": per_trillion / known.gpus / 24,
        "days_pretraining": known.hours_pretraining / known.gpus / 24,
        "tokens_per_day": rate * 86400,
        "gflop_per_token_causal": known.tflops_causal * 1e12 * known.gpus / rate / 1e9,
        "gflop_per_token_non_causal": known.tflops_non_causal * 1e12 * known.gpus / rate / 1e9,
        "gpu_hours_pretraining_from_flop": known.tokens
        * train_flops_per_token(v3, known.sequence_length)
        / (known.tflops_causal * 1e12)
        / 3600,
        "v2_hours_saved_over_67b": 1 - V2_HOURS_PER_TRILLION / DENSE_67B_HOURS_PER_TRILLION,
        "phases_sum_seconds": sum(seconds for _, seconds in known.phases),
    }


# ---------------------------------------------------------------------- the "one tenth" taken apart


@dataclass(frozen=True)
class Dense:
    """A published dense model: parameters, training tokens, GPU hours, cache bytes per token in BF16."""

    name: str
    parameters: float
    tokens: float
    gpu_hours: float
    cache_bytes_per_token: int
    source: str


LLAMA3_405B: Final = Dense(
    "Llama 3.1 405B", 405e9, 15.6e12, 30.84e6, 2 * 2 * 126 * 8 * 128,
    "6 FLOP per parameter and token; 30.84M H100-hours from the model card, seen second-hand; 126 layers, 8 key-value heads of 128",
)  # fmt: skip

COMPARISONS: Final = MappingProxyType({"llama3_405b": LLAMA3_405B})
"""By the name that `--compare` takes."""


def compare(config: ModelConfig, other: Dense, cache_bytes: int) -> dict[str, Any]:
    """FLOP, hours and cache of V3's published run beside another model's. Ratios are other over V3."""
    ours = REPORT.tokens * REPORT.gflop_per_token * 1e9
    theirs = 6 * other.parameters * other.tokens
    hours = REPORT.hours
    return {
        "name": other.name, "source": other.source, "flop_v3": ours, "flop_other": theirs, "flop_ratio": theirs / ours,
        "gpu_hours_v3": hours, "gpu_hours_other": other.gpu_hours, "gpu_hours_ratio": other.gpu_hours / hours,
        "gpu_hours_ratio_pretraining": other.gpu_hours / REPORT.hours_pretraining,
        "left_for_hardware_and_software": other.gpu_hours / hours / (theirs / ours),
        "cache_bytes_v3": cache_bytes, "cache_bytes_other": other.cache_bytes_per_token, "cache_ratio": other.cache_bytes_per_token / cache_bytes,
        "reading": "fewer FLOP per token explain nearly all of it; GPUs differ (H800 and H100: links), and so does the number format (FP8 and BF16)",
    }  # fmt: skip
