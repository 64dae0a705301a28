"""What `rorqual plan` shows: one object with every figure, the table report - ours - difference, and how each figure comes about."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rorqual.config import ModelConfig
from rorqual.html.numbers import grouped, short, size
from rorqual.planner import step as model
from rorqual.planner.activations import POLICIES
from rorqual.planner.cost import COMPARISONS, LEFT_OUT, REPORT, compare, predict, report_arithmetic
from rorqual.planner.flops import by_module, train_flops_per_token
from rorqual.planner.hardware import Hardware
from rorqual.planner.layout import Layout, stage_layers
from rorqual.planner.memory import cache_bytes_per_token, training_memory
from rorqual.planner.params import count
from rorqual.planner.serving import PRODUCTION_DAY, ServingPlan, decode_seconds_per_token, production_day
from rorqual.presets import preset


@dataclass(frozen=True)
class Request:
    """What is to be planned. `price` None takes the device's; `is_report` marks the report's own run, whose published figures stand beside."""

    name: str
    config: ModelConfig
    device: Hardware
    layout: Layout
    tokens: float
    batch_sequences: int
    seq_len: int
    price: float | None = None
    recompute: tuple[str, ...] = POLICIES
    moments: str = "bf16"
    is_report: bool = False


def training_plan(request: Request) -> dict[str, Any]:
    """Every figure of a training plan as plain values; predictions on top, `arithmetic` on published inputs apart."""
    config, parameters = request.config, count(request.config)
    prediction, step = predict(
        config, request.device, request.layout, tokens=request.tokens, batch_sequences=request.batch_sequences, seq_len=request.seq_len,
        price=request.price, extension=request.is_report, post_training_hours=REPORT.hours_post_training if request.is_report else 0.0,
    )  # fmt: skip
    memory = training_memory(config, request.device, request.layout, request.seq_len, request.batch_sequences, recompute=request.recompute,
                             moments=request.moments)  # fmt: skip
    price = request.device.price if request.price is None else request.price
    out: dict[str, Any] = {
        "name": request.name, "gpu": request.device.name, "gpus": request.layout.gpus, "layout": str(request.layout), "schedule": request.layout.schedule,
        "tokens": request.tokens, "batch_sequences": request.batch_sequences, "sequence_length": request.seq_len,
        "micro_batches": request.batch_sequences // request.layout.dp, "price": price,
        **prediction.as_json(),
        "parameters_total": parameters.total, "parameters_active": parameters.active, "parameters_active_without_embedding": parameters.active_without_embedding,
        "kv_bytes_per_token": cache_bytes_per_token(config),
        "layers_per_stage": [len(layers) for layers in stage_layers(config, request.layout.num_stages)],
        "modules": [{**asdict(one), "train_flops": one.train_flops} for one in by_module(config, request.seq_len)],
        "memory": memory.as_json(),
        "sensitivity": sensitivity(request, prediction.gpu_hours_total),
        "left_out": list(LEFT_OUT),
    }  # fmt: skip
    if request.is_report:
        out["arithmetic"] = report_arithmetic(config)
        out["llama3_405b"] = compare(config, COMPARISONS["llama3_405b"], int(cache_bytes_per_token(config)))
        out["comparison"] = comparison_table(out, config)
    out["simulation_events"] = sum(map(len, step.simulation.events))
    return out


def comparison_table(plan: dict[str, Any], config: ModelConfig) -> list[dict[str, Any]]:
    """Rows {what, report, ours, difference, kind}: kind is `prediction`, or `arithmetic` on published inputs."""
    arithmetic, phases = plan["arithmetic"], dict(REPORT.phases)
    predictions = [
        ("step_seconds", REPORT.step_seconds), ("tokens_per_day", REPORT.tokens_per_day), ("gflop_per_token", REPORT.gflop_per_token),
        ("mfu_causal", REPORT.mfu_causal), ("mfu_non_causal", REPORT.mfu_non_causal), ("gpu_hours_per_trillion_tokens", REPORT.hours_per_trillion_tokens),
        ("gpu_hours_pretraining", REPORT.hours_pretraining), ("gpu_hours_context_extension", REPORT.hours_context_extension), ("gpu_hours_total", REPORT.hours),
        ("cost_usd", REPORT.hours * REPORT.price),
    ]  # fmt: skip
    rows = [_row(name, published, plan[name], "prediction") for name, published in predictions]
    rows += [_row(f"phase {name}", published, plan["phases"][name], "prediction") for name, published in phases.items()]
    computed = [
        ("gpu_hours_total", REPORT.hours), ("cost_usd", 5_576_000), ("gpu_hours_per_trillion_tokens", 180_000), ("days_per_trillion_tokens", 3.7),
        ("tokens_per_day", REPORT.tokens_per_day), ("gflop_per_token_causal", 250),
    ]  # fmt: skip
    rows += [_row(name, published, arithmetic[name], "arithmetic") for name, published in computed]
    other, day = plan["llama3_405b"], production_day()
    derived = [
        ("GPU hours of pre-training from FLOP and 385 TFLOPS", REPORT.hours_pretraining, arithmetic["gpu_hours_pretraining_from_flop"]),
        ("V2: GFLOP per token", 155, train_flops_per_token(preset("v2_236b"), 4096) / 1e9),
        ("V2 over dense 67B: share of GPU hours saved", 0.425, arithmetic["v2_hours_saved_over_67b"]),
        ("kv_bytes_per_token", 70_272, plan["kv_bytes_per_token"]), ("Llama 3.1 405B: kv_bytes_per_token", 516_096, other["cache_bytes_other"]),
        ("Llama 3.1 405B: FLOP ratio", 10.2, other["flop_ratio"]), ("Llama 3.1 405B: GPU-hour ratio", 11.06, other["gpu_hours_ratio"]),
        ("decode ms per token, 50 GB/s links", 14.76, 1e3 * decode_seconds_per_token(config, 50e9)),
        ("decode ms per token, 900 GB/s links", 0.82, 1e3 * decode_seconds_per_token(config, 900e9)),
        ("inference day, USD", PRODUCTION_DAY["cost_usd"], day["cost_usd"]),
    ]  # fmt: skip
    return rows + [_row(name, published, ours, "arithmetic") for name, published, ours in derived]


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """The rows of `comparison_table` as Markdown, as docs/planner.md shows them."""
    lines = ["| figure | published | ours | difference | kind |", "|---|---:|---:|---:|---|"]
    lines += [
        f"| {row['what']} | {figure(row['report'])} | {figure(row['ours'])} | {row['difference']:+.1%} | {row['kind']} |" for row in rows
    ]
    return "\n".join(lines)


def figure(value: float) -> str:
    """A number as the tables print it: whole from 1,000 on, else four digits."""
    return grouped(value) if abs(value) >= 1000 else f"{value:.4g}"


def _row(what: str, published: float, ours: float, kind: str) -> dict[str, Any]:
    return {"what": what, "report": published, "ours": ours, "difference": ours / published - 1, "kind": kind}


REASONS = {
    "phase 1B": "chunks that run alone send at the line rate in ours; launches, small messages and waiting for the pipeline's neighbours come on top",
    "phase bubble": "the published bubble is an average over ranks and steps with jitter; ours is the busiest rank's, with even costs and no jitter",
    "phase optimizer": "ours is the rank with embedding and head, which exchanges most; the published figure is an average",
    "gpu_hours_context_extension": "the report gives no layout for long sequences; ours keeps the efficiency of the 4K run and full use of all GPUs",
}
"""Likely reasons for the differences that carry no tolerance."""


def sensitivity(request: Request, hours: float) -> dict[str, Any]:
    """Cost in dollars for prices of 1 to 4 an hour, and for 30 to 50 % of the BF16 peak at the plan's price."""
    flop = request.tokens * train_flops_per_token(request.config, request.seq_len)
    price = request.device.price if request.price is None else request.price
    by_mfu = {}
    if price is not None:
        for share in (0.30, 0.35, 0.40, 0.45, 0.50):
            by_mfu[f"{share:.2f}"] = flop / (share * request.device.bf16) / 3600 * price
    return {"by_price": {f"{value:g}": hours * value for value in (1.0, 1.5, 2.0, 3.0, 4.0)}, "by_mfu": by_mfu}


def explanations(request: Request, plan: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(figure, formula, inputs) of everything on top of the plan."""
    device, layout = request.device, request.layout
    per_step = plan["tokens_per_step"]
    chunks = [f"stage {number}: F {1e3 * c.forward:.1f}, B {1e3 * c.backward:.1f}, W {1e3 * c.weight:.1f}, all-to-all {1e3 * c.communication:.1f} ms"
              for number, c in ((s, model.chunk(request.config, device, layout, s, request.seq_len, True)) for s in sorted({0, layout.num_stages // 2, layout.num_stages - 1}))]  # fmt: skip
    return [
        ("gflop_per_token", "6 x matmul weights + 3 x 2 h (d_qk + d_v) T/2 layers", f"{count(request.config).matmul:,} weights, T {request.seq_len}"),
        ("chunk times", "GEMM FLOP / (e_gemm peak) + attention FLOP / (e_att BF16 peak) + bytes / bandwidth; all-to-all bytes / link", "; ".join(chunks)),
        ("step_seconds", f"simulated {layout.schedule} of {request.batch_sequences // layout.dp} micro-batches on {layout.pp} ranks, then the optimiser",
         ", ".join(f"{name} {seconds:.2f} s" for name, seconds in plan["phases"].items())),
        ("fitted constants", "on the published forward-backward profile (H800, 4 MoE layers, EP64, 4,096 tokens) only",
         f"GEMM {model.GEMM_EFFICIENCY}, attention {model.ATTENTION_EFFICIENCY}, other traffic {model.ELEMENTWISE_BYTES:g} bytes, pair {model.PAIR_OVERHEAD}"),
        ("gpu_hours_per_trillion_tokens", "gpus x step_seconds / tokens_per_step x 1e12 / 3600", f"{layout.gpus} GPUs, {plan['step_seconds']:.2f} s, {per_step:,} tokens"),
        ("gpu_hours_total", "pre-training + context extension + post-training", f"{plan['gpu_hours_pretraining']:,.0f} + {plan['gpu_hours_context_extension']:,.0f} + {plan['gpu_hours_post_training']:,.0f}"),
        ("cost_usd", "gpu_hours_total x price", f"${plan['price']} an hour ({device.price_source or 'given'})"),
        ("mfu_causal", "gflop_per_token / (GPU-seconds per token x BF16 peak)", f"BF16 peak {short(device.bf16)}FLOP/s ({device.source})"),
        ("memory", "the rank that needs most: weights, FP8 copies, FP32 gradients, shared-out master and moments, activations x chunks in flight, logits, buffers, 5 % gaps",
         ", ".join(f"{name} {size(value)}" for name, value in plan["memory"]["parts"].items())),
    ]  # fmt: skip


def serving_explanations(config: ModelConfig, device: Hardware, gpus: int, context: int, plan: ServingPlan) -> list[tuple[str, str, str]]:
    """(figure, formula, inputs) of a plan of serving."""
    per_token = plan.cache_bytes_per_token
    return [
        ("cache_bytes_per_token", "layers x (kv_lora_rank + qk_rope_head_dim) x 2 bytes", f"{config.num_hidden_layers} x ({config.kv_lora_rank} + {config.qk_rope_head_dim})"),
        ("weight_bytes_per_gpu", "ceil(experts / gpus) whole experts of every MoE layer + all else / tp", f"{size(plan.weight_bytes)} in all, {gpus} GPUs, tp {plan.tp}"),
        ("largest_batch", "gpus / tp x floor((0.9 memory - weights) / (context x cache)): the latents serve all heads, so each GPU of a group keeps them whole",
         f"{size(device.memory)}, {size(plan.cache_bytes_free)} free, {context:,} x {per_token:,.0f} bytes"),
        ("decode seconds", "the largest of: (weights touched + cache read) / bandwidth; absorbed FLOP / peak; MoE layers x 3 bytes x tokens x (K + shared) x hidden / link",
         f"{size(device.memory_bandwidth)}/s, {short(device.linear_peak)}FLOP/s, bound by {plan.largest.bound} at batch {plan.largest.batch:,}"),
        ("prefill_seconds", "the larger of: FLOP without the head / peak; dispatch and combine / link; over all GPUs", f"{context:,} tokens, bound by {plan.prefill_bound}"),
        ("cost per million tokens", "gpus x price / 3600 / tokens per second x 1e6", f"{gpus} GPUs"),
    ]  # fmt: skip


def comparison_explanations(out: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(figure, formula, inputs) of `compare`."""
    return [
        ("flop_v3", "published tokens x published FLOP per token", f"{short(REPORT.tokens)} x {REPORT.gflop_per_token:g} GFLOP"),
        ("flop_other", "6 x parameters x tokens", out["source"]),
        ("gpu_hours_ratio", "other hours / (pre-training + context extension + post-training)", f"{out['gpu_hours_other']:,.0f} / {out['gpu_hours_v3']:,}"),
        ("left_for_hardware_and_software", "ratio of hours / ratio of FLOP", f"{out['gpu_hours_ratio']:.2f} / {out['flop_ratio']:.2f}"),
        ("cache_ratio", "2 x layers x key-value heads x head width x 2 bytes / (layers x (c + r) x 2 bytes)", f"{out['cache_bytes_other']:,} / {out['cache_bytes_v3']:,}"),
    ]  # fmt: skip
