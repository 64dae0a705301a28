"""The objects of `rorqual plan` as text for a terminal."""

from __future__ import annotations

from typing import Any

from rorqual.html.numbers import flops, grouped, percent, short, size
from rorqual.planner.report import REASONS, figure


def parts_of(parts: dict[str, float]) -> str:
    """Bytes by name, largest first."""
    return ", ".join(f"{name.replace('_', ' ')} {size(value)}" for name, value in sorted(parts.items(), key=lambda one: -one[1]) if value)


def explained(out: dict[str, Any]) -> list[str]:
    """Formula and inputs of every figure, where they were asked for."""
    if "explanations" not in out:
        return []
    return ["", *(f"  {one['figure']}\n      = {one['formula']}\n      with {one['inputs']}" for one in out["explanations"])]


def training(plan: dict[str, Any]) -> str:
    """A plan of training."""
    cost = "no price: give --price" if plan["cost_usd"] is None else f"${plan['cost_usd']:,.0f} at ${plan['price']:g} an hour"
    memory = plan["memory"]
    lines = [
        f"{plan['name']} on {grouped(plan['gpus'])} x {plan['gpu']}, {plan['layout']}, {plan['schedule']}; {short(plan['tokens'])} tokens in steps of "
        f"{grouped(plan['batch_sequences'])} x {grouped(plan['sequence_length'])}",
        "",
        f"  step             {plan['step_seconds']:.2f} s: " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in plan["phases"].items())
        + f"; {plan['exposed_communication']:.2f} s of communication are not hidden",
        f"  tokens a day     {short(plan['tokens_per_day'], 4)}",
        f"  parameters       {short(plan['parameters_total'], 4)}, {short(plan['parameters_active'], 4)} active ({short(plan['parameters_active_without_embedding'], 4)} without the input embedding)",
        f"  FLOP             {plan['gflop_per_token']:,.1f} GFLOP a token; {percent(plan['mfu_causal'])} of the BF16 peak (attention causal), {percent(plan['mfu_non_causal'])} (in full)",
        f"  GPU hours        {grouped(plan['gpu_hours_total'])} = {grouped(plan['gpu_hours_pretraining'])} + {grouped(plan['gpu_hours_context_extension'])} + "
        f"{grouped(plan['gpu_hours_post_training'])} (pre-training, context extension, post-training); {short(plan['gpu_hours_per_trillion_tokens'], 4)} per trillion tokens",
        f"  time             {plan['days']:.1f} days of pre-training",
        f"  cost             {cost}",
        f"  memory           {size(memory['total'])} of {size(memory['available'])} on the fullest GPU{'' if memory['fits'] else ': DOES NOT FIT'}: {parts_of(memory['parts'])}",
        f"  layers per stage {', '.join(map(str, plan['layers_per_stage']))}",
    ]  # fmt: skip
    if "comparison" in plan:
        lines += ["", f"  {'figure':<52}{'published':>16}{'ours':>16}{'difference':>12}  kind"]
        lines += [
            f"  {row['what']:<52}{figure(row['report']):>16}{figure(row['ours']):>16}{row['difference']:>+12.1%}  {row['kind']}"
            for row in plan["comparison"]
        ]
        lines += ["", *(f"  {name}: {reason}" for name, reason in REASONS.items())]
    lines += ["", "  the published cost leaves out: " + "; ".join(plan["left_out"])]
    if "explanations" in plan:
        lines += ["", f"  {'module':<24}{'parameters':>18}{'active':>18}{'FLOP a token, training':>26}"]
        lines += [
            f"  {one['name']:<24}{one['parameters']:>18,}{one['active']:>18,}{flops(one['train_flops']):>26}" for one in plan["modules"]
        ]
    return "\n".join(lines + explained(plan))


def layouts(out: dict[str, Any]) -> str:
    """The best layouts, and why others do not work."""
    lines = [
        f"  {'layout':<26}{'schedule':<11}{'step s':>9}{'bubble':>8}{'exposed s':>11}{'GPU hours':>14}{'cost':>14}  memory of the fullest GPU"
    ]
    for one in out["layouts"]:
        cost = "-" if one["cost_usd"] is None else f"${one['cost_usd']:,.0f}"
        lines.append(
            f"  {one['layout']:<26}{one['schedule']:<11}{one['step_seconds']:>9.2f}{one['bubble']:>8.1%}{one['exposed_communication']:>11.2f}"
            f"{grouped(one['gpu_hours_total']):>14}{cost:>14}  {size(one['memory']['total'])}: {parts_of(one['memory']['parts'])}"
        )
    if "nearest" in out:
        lines.append("  " + out["nearest"])
    return "\n".join([*lines, "", "  refused:", *(f"    {n:>5}  {reason}" for reason, n in out["refused"].items())])


def serving(out: dict[str, Any]) -> str:
    """A plan of serving."""
    day, units = out["published_day"], out["published_units"]
    lines = [
        f"{out['name']} on {out['gpus']} x {out['gpu']}, {grouped(out['context'])} tokens a request, attention split over {out['tp']}",
        "",
        f"  weights          {size(out['weight_bytes'])} in all, {size(out['weight_bytes_per_gpu'])} a GPU",
        f"  cache            {grouped(out['cache_bytes_per_token'])} bytes a token; room for {size(out['cache_bytes_free'])} a GPU",
        "  other caches     " + ", ".join(f"{name.replace('_', ' ')} {grouped(value)}" for name, value in out["cache_schemes_bytes_per_token"].items()) + " bytes a token in BF16",
        f"  largest batch    {grouped(out['largest_batch'])} requests",
        f"  prefill          at least {1e3 * out['prefill_seconds']:.1f} ms a prompt with all GPUs at work on prompts, at most {grouped(out['prefill_tokens_per_second'])} tokens/s, "
        f"bound by {out['prefill_bound']}; at least {_dollars(out['cost_per_million_input_tokens'])} a million input tokens",
        "",
        f"  {'decode: batch':<17}{'ms a token':>12}{'tokens/s a user':>18}{'tokens/s in all':>18}{'a million tokens':>24}  bound by",
    ]  # fmt: skip
    lines += [
        f"  {grouped(one['batch']):<17}{1e3 * one['seconds']:>12.2f}{one['tokens_per_second_per_user']:>18.1f}{grouped(one['tokens_per_second']):>18}"
        f"{_dollars(one['cost_per_million_output_tokens']):>24}  {one['bound']}" for one in out["decode"]
    ]  # fmt: skip
    lines += ["", "  all of these are bounds: nothing can be faster or cheaper on these devices",
              f"  the published day: ${day['per_million_output_tokens']:.3f} a million output tokens with all cost on the output, ${day['per_million_tokens']:.3f} over input and output"]  # fmt: skip
    for phase, unit in units.items():
        lines.append(
            f"  the report's {phase} unit: {unit['gpus']} GPUs, attention {unit['attention']}, experts {unit['experts']} ({unit['experts_per_gpu']})"
        )
    return "\n".join(lines + explained(out))


def _dollars(value: float | None) -> str:
    return "no price: give --price" if value is None else f"${value:.3f}"


def comparison(out: dict[str, Any]) -> str:
    """V3 beside another model."""
    return "\n".join([
        f"DeepSeek-V3 beside {out['name']} ({out['source']})",
        "",
        f"  FLOP             {out['flop_v3']:.3g} and {out['flop_other']:.3g}: {out['flop_ratio']:.1f}x",
        f"  GPU hours        {grouped(out['gpu_hours_v3'])} and {grouped(out['gpu_hours_other'])}: {out['gpu_hours_ratio']:.2f}x ({out['gpu_hours_ratio_pretraining']:.2f}x over pre-training alone)",
        f"  left for hardware, format and software: {out['left_for_hardware_and_software']:.2f}x",
        f"  cache a token    {grouped(out['cache_bytes_v3'])} and {grouped(out['cache_bytes_other'])} bytes: {out['cache_ratio']:.2f}x",
        f"  {out['reading']}",
        *explained(out),
    ])  # fmt: skip


def experts(out: dict[str, Any]) -> str:
    """Where copies of experts go."""
    lines = [f"{out['replicas']} places on {out['gpus']} GPUs; imbalance is the largest GPU load over the mean"]
    for number, layer in enumerate(out["layers"]):
        before = "" if layer["imbalance_without_copies"] is None else f" (without copies {layer['imbalance_without_copies']:.3f})"
        lines.append(f"  layer {number}: imbalance {layer['imbalance']:.3f}{before}; experts by place {layer['physical_to_logical']}")
    return "\n".join(lines)


def one_device(out: dict[str, Any]) -> str:
    """Memory of this package's own trainer."""
    verdict = "" if out["available"] is None else f" of {size(out['available'])}{'' if out['fits'] else ': DOES NOT FIT'}"
    return f"{out['name']}: memory for {out['what']}: {size(out['total'])}{verdict}\n  tensors {size(out['tensors'])}: {parts_of(out['parts'])}; the rest is the program and a margin for gaps"
