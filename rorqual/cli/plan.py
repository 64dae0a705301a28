"""Plan a training run or a deployment: time, cost, memory, layouts, expert placement.

rorqual plan v3_671b                                          # the report's own run, beside its published figures
rorqual plan my_config.json --gpus 64 --gpu h100 --tokens 300e9 --search
rorqual plan v3_671b --serve --context 8192 --gpus 16 --gpu h200
rorqual plan v3_671b --compare llama3_405b
rorqual plan --experts load.json --gpus 32
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rorqual.config import ModelConfig
from rorqual.errors import ConfigError
from rorqual.html.numbers import grouped, percent, short, size
from rorqual.planner.activations import POLICIES
from rorqual.planner.cost import COMPARISONS, REPORT, compare, predict
from rorqual.planner.eplb import place_experts
from rorqual.planner.hardware import Hardware, hardware
from rorqual.planner.layout import Layout, parse
from rorqual.planner.memory import cache_bytes_per_token
from rorqual.planner.report import REASONS, Request, explanations, training_plan
from rorqual.planner.schedule import SCHEDULES
from rorqual.planner.search import Candidate, search
from rorqual.planner.serving import plan_serving, production_day

_REPORT_RECIPE = "v3_671b"


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code. Raises ConfigError for what cannot be planned, with the nearest that can."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.experts:
        return _experts(args)
    if args.model is None:
        parser.error("name a recipe, a preset or a config.json (or give --experts FILE)")
    if args.compare:
        return _show(
            compare(_config(args.model), COMPARISONS[args.compare], int(cache_bytes_per_token(_config(args.model)))),
            args.json,
            _compare_text,
        )
    if args.serve:
        return _serve(args)
    request = _request(args)
    return _search(args, request) if args.search else _train(args, request)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rorqual plan", description="Predict time, cost and memory of a training run or a deployment; no model is built."
    )
    parser.add_argument(
        "model", nargs="?", help="recipe (its batch, length and tokens are taken), preset, config.json, or a folder with one"
    )
    parser.add_argument("--gpu", help="device of the table, or a JSON file with its fields (default: h800 for the report's run, else h100)")
    parser.add_argument("--gpus", type=int, metavar="N", help="number of devices (default: the layout's)")
    parser.add_argument(
        "--tokens", type=float, metavar="N", help="training tokens, e.g. 300e9 (default: the recipe's, else 20 per active parameter)"
    )
    parser.add_argument("--batch", type=int, metavar="N", help="sequences a step (default: the recipe's, else 1024)")
    parser.add_argument("--seq", type=int, metavar="N", help="tokens a sequence (default: the recipe's, else 4096)")
    parser.add_argument("--price", type=float, metavar="USD", help="of one device and hour (default: the table's)")
    parser.add_argument(
        "--layout", metavar="pp4,dp16,ep8", help="degrees of parallelism (default: the report's, else the fastest that fits)"
    )
    parser.add_argument("--schedule", choices=sorted(SCHEDULES), default="dualpipe", help="of the pipeline (default: dualpipe)")
    parser.add_argument("--recompute", default=",".join(POLICIES), metavar="LIST", help=f"of {', '.join(POLICIES)}, or none (default: all)")
    parser.add_argument("--search", action="store_true", help="list the best layouts, and why the others do not fit")
    parser.add_argument("--serve", action="store_true", help="plan inference instead of training")
    parser.add_argument("--context", type=int, default=8192, metavar="N", help="with --serve: tokens of one request (default: 8192)")
    parser.add_argument("--compare", choices=sorted(COMPARISONS), help="FLOP, hours and cache beside another model's")
    parser.add_argument(
        "--experts", type=Path, metavar="FILE", help="place redundant experts: JSON list of layers, each a list of tokens per expert"
    )
    parser.add_argument("--replicas", type=int, metavar="N", help="with --experts: places in all (default: experts plus one a GPU)")
    parser.add_argument("--groups", type=int, default=1, metavar="N", help="with --experts: expert groups (default: 1)")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="with --experts: nodes (default: 1)")
    parser.add_argument("--explain", action="store_true", help="show formula and inputs of every figure")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the plan as a self-contained page")
    return parser


# ---------------------------------------------------------------------- training


def _request(args: argparse.Namespace) -> Request:
    from rorqual.recipes.catalog import RECIPES, recipe

    run = recipe(args.model) if args.model in RECIPES else None
    config = run.model if run else _config(args.model)
    is_report = args.model == _REPORT_RECIPE and not any((args.gpu, args.gpus, args.tokens, args.batch, args.seq, args.layout))
    seq_len = args.seq or (run.train.sequence_length if run else 4096)
    batch = args.batch or (run.train.batch.value(run.train.total_tokens) if run else 1024)
    from rorqual.planner.params import count

    tokens = args.tokens or (run.train.total_tokens if run else 20.0 * count(config).active)
    if min(seq_len, batch, tokens) <= 0:
        raise ConfigError(f"--seq ({seq_len}), --batch ({batch}) and --tokens ({tokens}) must be positive")
    device = hardware(args.gpu or ("h800" if args.model == _REPORT_RECIPE else "h100"))
    recompute = () if args.recompute == "none" else tuple(filter(None, args.recompute.split(",")))
    layout = _layout(args, config, device, tokens, batch, seq_len, recompute)
    return Request(args.model, config, device, layout, tokens, batch, seq_len, args.price, recompute, is_report)


def _layout(
    args: argparse.Namespace, config: ModelConfig, device: Hardware, tokens: float, batch: int, seq_len: int, recompute: tuple[str, ...]
) -> Layout:  # fmt: skip
    from rorqual.planner.layout import check

    if args.layout or (args.model == _REPORT_RECIPE and args.gpus in (None, REPORT.gpus) and not args.search):
        layout = parse(args.layout or REPORT.layout, args.schedule)
        if layout.pp == 1:
            layout = Layout(1, layout.dp, layout.ep, "1f1b")
        check(layout, config, batch, args.gpus)
        return layout
    if args.search:
        return Layout(1, args.gpus or 1, 1, "1f1b")
    found = search(config, device, args.gpus or 1, tokens=tokens, batch_sequences=batch, seq_len=seq_len, recompute=recompute)
    if not found.feasible:
        raise ConfigError(_nothing_fits(args.gpus or 1, device, found.nearest, found.refused))
    return found.feasible[0].layout


def _nothing_fits(gpus: int, device: Hardware, nearest: Candidate | None, refused: dict[str, int]) -> str:
    if nearest is None:
        return f"no layout of {gpus} x {device.name} works: {'; '.join(f'{reason} ({n})' for reason, n in refused.items())}"
    memory = nearest.memory
    return (
        f"no layout of {gpus} x {device.name} fits: the smallest, {nearest.layout} with {nearest.layout.schedule}, needs {size(memory.total)} of "
        f"{size(memory.available)} a GPU; use at least {-(-gpus * memory.total // memory.available):.0f} GPUs, or a device with more memory"
    )


def _train(args: argparse.Namespace, request: Request) -> int:
    plan = training_plan(request)
    if args.html:
        from rorqual.html.page import write
        from rorqual.planner.page import plan_page

        _, step = predict(
            request.config,
            request.device,
            request.layout,
            tokens=request.tokens,
            batch_sequences=request.batch_sequences,
            seq_len=request.seq_len,
        )
        write(args.html, plan_page(plan, step.simulation))
    if args.explain:
        plan["explanations"] = [{"figure": a, "formula": b, "inputs": c} for a, b, c in explanations(request, plan)]
    _show(plan, args.json, _train_text)
    if args.html and not args.json:
        print(f"written: {args.html}")
    return 0


def _train_text(plan: dict[str, Any]) -> str:
    cost = "no price: give --price" if plan["cost_usd"] is None else f"${plan['cost_usd']:,.0f} at ${plan['price']:g} an hour"
    memory = plan["memory"]
    lines = [
        f"{plan['name']} on {grouped(plan['gpus'])} x {plan['gpu']}, {plan['layout']}, {plan['schedule']}; {short(plan['tokens'])} tokens in steps of "
        f"{grouped(plan['batch_sequences'])} x {grouped(plan['sequence_length'])}",
        "",
        f"  step             {plan['step_seconds']:.2f} s: " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in plan["phases"].items()),
        f"  tokens a day     {short(plan['tokens_per_day'], 4)}",
        f"  FLOP             {plan['gflop_per_token']:,.1f} GFLOP a token; {percent(plan['mfu_causal'])} of the BF16 peak (attention causal), {percent(plan['mfu_non_causal'])} (in full)",
        f"  GPU hours        {grouped(plan['gpu_hours_total'])} = {grouped(plan['gpu_hours_pretraining'])} + {grouped(plan['gpu_hours_context_extension'])} + "
        f"{grouped(plan['gpu_hours_post_training'])} (pre-training, context extension, post-training); {short(plan['gpu_hours_per_trillion_tokens'], 4)} per trillion tokens",
        f"  time             {plan['days']:.1f} days of pre-training",
        f"  cost             {cost}",
        f"  memory           {size(memory['total'])} of {size(memory['available'])} on the fullest GPU{'' if memory['fits'] else ': DOES NOT FIT'}: "
        + ", ".join(f"{name.replace('_', ' ')} {size(value)}" for name, value in memory["parts"].items() if value),
        f"  layers per stage {', '.join(map(str, plan['layers_per_stage']))}",
    ]  # fmt: skip
    if "comparison" in plan:
        lines += ["", f"  {'figure':<34}{'report':>16}{'ours':>16}{'difference':>12}  kind"]
        for row in plan["comparison"]:
            lines.append(
                f"  {row['what']:<34}{_number(row['report']):>16}{_number(row['ours']):>16}{row['difference']:>+12.1%}  {row['kind']}"
            )
        lines += [f"  {name}: {reason}" for name, reason in REASONS.items()]
    lines += ["", "  the published cost leaves out: " + "; ".join(plan["left_out"])]
    if "explanations" in plan:
        lines.append("")
        lines += [f"  {one['figure']}\n      = {one['formula']}\n      with {one['inputs']}" for one in plan["explanations"]]
    return "\n".join(lines)


def _search(args: argparse.Namespace, request: Request) -> int:
    if not args.gpus:
        raise ConfigError("--search needs --gpus N")
    found = search(request.config, request.device, args.gpus, tokens=request.tokens, batch_sequences=request.batch_sequences, seq_len=request.seq_len,
                   recompute=request.recompute, price=args.price)  # fmt: skip
    out = {
        "gpus": args.gpus, "gpu": request.device.name, "refused": found.refused,
        "layouts": [{"layout": str(one.layout), "schedule": one.layout.schedule, "bubble": one.bubble, "memory": one.memory.as_json(), **one.prediction.as_json()} for one in found.feasible[:10]],
    }  # fmt: skip
    if not found.feasible:
        out["nearest"] = _nothing_fits(args.gpus, request.device, found.nearest, found.refused)
    return _show(out, args.json, _search_text) or (0 if found.feasible else 1)


def _search_text(out: dict[str, Any]) -> str:
    lines = [f"  {'layout':<20}{'schedule':<11}{'step s':>9}{'bubble':>8}{'exposed s':>11}{'memory':>10}{'GPU hours':>14}{'cost':>14}"]
    for one in out["layouts"]:
        cost = "-" if one["cost_usd"] is None else f"${one['cost_usd']:,.0f}"
        lines.append(
            f"  {one['layout']:<20}{one['schedule']:<11}{one['step_seconds']:>9.2f}{one['bubble']:>8.1%}{one['exposed_communication']:>11.2f}"
            f"{size(one['memory']['total']):>10}{grouped(one['gpu_hours_total']):>14}{cost:>14}"
        )
    if "nearest" in out:
        lines.append("  " + out["nearest"])
    lines += ["", "  refused:", *(f"    {n:>5}  {reason}" for reason, n in out["refused"].items())]
    return "\n".join(lines)


# ---------------------------------------------------------------------- serving, comparison, experts


def _serve(args: argparse.Namespace) -> int:
    device, gpus = hardware(args.gpu or "h800"), args.gpus or 8
    plan = plan_serving(_config(args.model), device, gpus, args.context, price=args.price)
    out = {
        "name": args.model,
        "gpu": device.name,
        "gpus": gpus,
        "context": args.context,
        **plan.as_json(),
        "published_day": production_day(),
    }
    return _show(out, args.json, _serve_text)


def _serve_text(out: dict[str, Any]) -> str:
    cost, day = out["cost_per_million_output_tokens"], out["published_day"]
    return "\n".join([
        f"{out['name']} on {out['gpus']} x {out['gpu']}, {grouped(out['context'])} tokens a request",
        "",
        f"  weights          {size(out['weight_bytes'])}; cache {grouped(out['cache_bytes_per_token'])} bytes a token, room for {size(out['cache_bytes_free'])}",
        f"  largest batch    {grouped(out['largest_batch'])} requests",
        f"  decode           at least {1e3 * out['decode_seconds']:.2f} ms a token, bound by {out['decode_bound']}: at most {out['tokens_per_second_per_user']:.1f} tokens/s a user, {grouped(out['tokens_per_second'])} in all",
        f"  prefill          at least {1e3 * out['prefill_seconds']:.1f} ms for one prompt at the FP8 peak",
        f"  cost             {'no price: give --price' if cost is None else f'at least ${cost:.3f} a million output tokens'}; the published day: ${day['per_million_output_tokens']:.3f} with all cost on the output",
    ])  # fmt: skip


def _compare_text(out: dict[str, Any]) -> str:
    return "\n".join([
        f"DeepSeek-V3 beside {out['name']} ({out['source']})",
        "",
        f"  FLOP             {out['flop_v3']:.3g} and {out['flop_other']:.3g}: {out['flop_ratio']:.1f}x",
        f"  GPU hours        {grouped(out['gpu_hours_v3'])} and {grouped(out['gpu_hours_other'])}: {out['gpu_hours_ratio']:.2f}x ({out['gpu_hours_ratio_pretraining']:.2f}x over pre-training alone)",
        f"  left for hardware, format and software: {out['left_for_hardware_and_software']:.2f}x",
        f"  cache a token    {grouped(out['cache_bytes_v3'])} and {grouped(out['cache_bytes_other'])} bytes: {out['cache_ratio']:.2f}x",
        f"  {out['reading']}",
    ])  # fmt: skip


def _experts(args: argparse.Namespace) -> int:
    try:
        loads = json.loads(args.experts.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{args.experts} cannot be read as JSON: {error}") from None
    loads = loads if isinstance(loads, list) and loads and isinstance(loads[0], list) else [loads]
    if not all(isinstance(row, list) and row and all(type(x) in (int, float) for x in row) for row in loads):
        raise ConfigError(f"{args.experts} must hold a list of layers, each a list of numbers (tokens per expert)")
    gpus = args.gpus or 8
    replicas = args.replicas or -(-len(loads[0]) // gpus) * gpus + (gpus if args.replicas is None else 0)
    plain = -(-len(loads[0]) // gpus) * gpus
    placed = place_experts(loads, replicas, args.groups, args.nodes, gpus)
    before = place_experts(loads, plain, args.groups, args.nodes, gpus) if plain == len(loads[0]) else None
    out = {
        "gpus": gpus, "replicas": replicas,
        "layers": [{"physical_to_logical": list(one.logical), "logical_to_physical": [list(row) for row in one.places], "copies": list(one.copies),
                    "imbalance": one.imbalance(load), "imbalance_without_copies": before[i].imbalance(load) if before else None}
                   for i, (one, load) in enumerate(zip(placed, loads, strict=True))],
    }  # fmt: skip
    return _show(out, args.json, _experts_text)


def _experts_text(out: dict[str, Any]) -> str:
    lines = [f"{out['replicas']} places on {out['gpus']} GPUs; imbalance is the largest GPU load over the mean"]
    for number, layer in enumerate(out["layers"]):
        before = "" if layer["imbalance_without_copies"] is None else f" (without copies {layer['imbalance_without_copies']:.3f})"
        lines.append(f"  layer {number}: imbalance {layer['imbalance']:.3f}{before}; experts by place {layer['physical_to_logical']}")
    return "\n".join(lines)


# ---------------------------------------------------------------------- shared


def _config(name: str) -> ModelConfig:
    from rorqual.presets import PRESETS, preset
    from rorqual.recipes.catalog import RECIPES, recipe

    if name in RECIPES:
        return recipe(name).model
    if name in PRESETS:
        return preset(name)
    if not Path(name).exists():
        raise ConfigError(f"{name!r} is no recipe ({', '.join(RECIPES)}), no preset ({', '.join(PRESETS)}) and no file")
    return ModelConfig.from_file(name)


def _show(out: dict[str, Any], as_json: bool, text: Any) -> int:
    print(json.dumps(out) if as_json else text(out))
    return 0


def _number(value: float) -> str:
    return grouped(value) if abs(value) >= 1000 else f"{value:.4g}"
