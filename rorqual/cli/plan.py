"""Plan a training run or a deployment: time, cost, memory, layouts, expert placement.

rorqual plan v3_671b                                          # the report's own run, beside its published figures
rorqual plan v3_671b --table                                  # only the figures side by side, in Markdown
rorqual plan my_config.json --gpus 64 --gpu h100 --tokens 300e9 --search
rorqual plan v3_671b --serve --context 8192 --gpus 16 --gpu h200
rorqual plan v3_671b --compare llama3_405b
rorqual plan --experts load.json --gpus 32
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rorqual.cli import memory_check, plan_text
from rorqual.config import ModelConfig
from rorqual.errors import ConfigError
from rorqual.html.numbers import size
from rorqual.planner.activations import POLICIES
from rorqual.planner.cost import COMPARISONS, REPORT, compare, predict
from rorqual.planner.eplb import place_experts
from rorqual.planner.hardware import Hardware, hardware
from rorqual.planner.layout import Layout, check, parse
from rorqual.planner.memory import cache_bytes_per_token
from rorqual.planner.params import cache_schemes, count
from rorqual.planner.report import (
    Request,
    comparison_explanations,
    explanations,
    markdown_table,
    serving_explanations,
    training_plan,
)
from rorqual.planner.schedule import SCHEDULES
from rorqual.planner.search import Candidate, Search, enough, search
from rorqual.planner.serving import UNITS, decode_seconds_per_token, plan_serving, production_day

_REPORT_RECIPE = "v3_671b"


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code. Raises ConfigError for what cannot be planned, with the nearest that can."""
    parser = _parser()
    args = parser.parse_args(argv)
    modes = [name for name in ("experts", "compare", "serve", "search", "memory", "table") if getattr(args, name)]
    if len(modes) > 1:
        parser.error(f"--{modes[0]} and --{modes[1]} are two plans; ask for one")
    mode = modes[0] if modes else None
    if args.layout and mode in ("search", "experts", "compare", "serve", "memory"):
        parser.error(f"--layout names one layout of training; it does not go with --{mode}")
    if args.html and mode:
        parser.error(f"--html draws a plan of training; it does not go with --{mode}")
    if args.explain and mode in ("experts", "search", "memory", "table"):
        parser.error(f"--explain does not go with --{mode}")
    for name in ("gpus", "batch", "seq", "tokens", "micro_batch", "replicas", "context", "lora"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} ({value:g}) must be positive")
    if args.price is not None and not 0 <= args.price < float("inf"):
        raise ConfigError(f"--price ({args.price}) must be a number of at least 0")
    if mode == "experts":
        return _experts(args)
    if args.model is None:
        parser.error("name a recipe, a preset or a config.json (or give --experts FILE)")
    if mode == "compare":
        return _compare(args)
    if mode == "serve":
        return _serve(args)
    if mode == "memory":
        return _one_device(args)
    request = _request(args)
    return _search(args, request) if mode == "search" else _train(args, request)


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
    parser.add_argument("--schedule", choices=sorted(SCHEDULES), help="of the pipeline (default: dualpipe for a named layout, else any)")
    parser.add_argument("--recompute", default=",".join(POLICIES), metavar="LIST", help=f"of {', '.join(POLICIES)}, or none (default: all)")
    parser.add_argument(
        "--moments", choices=("bf16", "fp32"), default="bf16", help="storage of both moments (default: bf16, as the report)"
    )
    parser.add_argument("--dtype", choices=("fp8", "bf16"), help="of the Linears' GEMMs (default: fp8 where the device has it)")
    parser.add_argument("--search", action="store_true", help="list the best layouts, and why the others do not fit")
    parser.add_argument("--serve", action="store_true", help="plan inference instead of training")
    parser.add_argument(
        "--cache-dtype", choices=("bf16", "fp8"), default="bf16", help="with --serve: of the latents in the cache (default: bf16)"
    )
    parser.add_argument(
        "--tp", type=int, metavar="N", help="with --serve: GPUs that split attention (default: what leaves room for most requests)"
    )
    parser.add_argument(
        "--memory", action="store_true", help="memory of rorqual's own trainer on one device, as `rorqual pretrain` reckons it"
    )
    parser.add_argument(
        "--micro-batch", type=int, default=1, metavar="N", help="with --memory: sequences of a forward and backward (default: 1)"
    )
    parser.add_argument("--lora", type=int, metavar="RANK", help="with --memory: only adapters of this rank train")
    parser.add_argument("--context", type=int, default=8192, metavar="N", help="with --serve: tokens of one request (default: 8192)")
    parser.add_argument("--compare", choices=sorted(COMPARISONS), help="FLOP, hours and cache beside another model's")
    parser.add_argument(
        "--experts", type=Path, metavar="FILE", help="place redundant experts: JSON list of layers, each a list of tokens per expert"
    )
    parser.add_argument("--replicas", type=int, metavar="N", help="with --experts: places in all (default: experts plus one a GPU)")
    parser.add_argument("--groups", type=int, default=1, metavar="N", help="with --experts: expert groups (default: 1)")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="with --experts: nodes (default: 1)")
    parser.add_argument("--table", action="store_true", help="the report's figures beside ours, as a Markdown table")
    memory_check.add_option(parser)
    parser.add_argument("--explain", action="store_true", help="show formula and inputs of every figure")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the plan as a self-contained page")
    return parser


# ---------------------------------------------------------------------- training


def _device(args: argparse.Namespace, default: str) -> Hardware:
    device = hardware(args.gpu or default)
    if args.dtype == "fp8" and not device.fp8:
        raise ConfigError(f"{device.name} has no FP8 arithmetic; use --dtype bf16")
    return replace(device, fp8=0.0) if args.dtype == "bf16" else device


def _recompute(args: argparse.Namespace) -> tuple[str, ...]:
    return () if args.recompute == "none" else tuple(filter(None, args.recompute.split(",")))


def _request(args: argparse.Namespace) -> Request:
    from rorqual.recipes.catalog import RECIPES, recipe

    run = recipe(args.model) if args.model in RECIPES else None
    config = run.model if run else _config(args.model)
    changed = (args.gpu, args.gpus, args.tokens, args.batch, args.seq, args.layout, args.dtype, args.search, args.schedule)
    is_report = args.model == _REPORT_RECIPE and not any(changed)
    if args.table and not is_report:
        raise ConfigError(f"--table compares the report's own run: use `rorqual plan {_REPORT_RECIPE} --table`")
    seq_len = args.seq or (run.train.sequence_length if run else 4096)
    batch = args.batch or (run.train.batch.value(run.train.total_tokens) if run else 1024)
    tokens = args.tokens or (run.train.total_tokens if run else 20.0 * count(config).active)
    device = _device(args, "h800" if args.model == _REPORT_RECIPE else "h100")
    draft = Request(args.model, config, device, Layout(), tokens, batch, seq_len, args.price, _recompute(args), args.moments, is_report)
    return draft if args.search else replace(draft, layout=_layout(args, draft))


def _layout(args: argparse.Namespace, draft: Request) -> Layout:
    """The layout that is asked for, the report's for its run, else the fastest that fits; ConfigError where none does."""
    if args.layout or (args.model == _REPORT_RECIPE and args.gpus in (None, REPORT.gpus)):
        layout = parse(args.layout or REPORT.layout, args.schedule or "dualpipe")
        layout = replace(layout, schedule="1f1b") if layout.pp == 1 else layout
        check(layout, draft.config, draft.batch_sequences, args.gpus)
        return layout
    gpus = args.gpus or 1
    found = _look(draft, gpus, _schedules(args), best_only=True)
    if found.feasible:
        return found.feasible[0].layout
    if args.ignore_memory and found.nearest is not None:
        return found.nearest.layout
    raise ConfigError(_nothing_fits(draft, gpus, found.nearest, found.refused))


def _schedules(args: argparse.Namespace) -> tuple[str, ...]:
    return (args.schedule,) if args.schedule else tuple(SCHEDULES)


def _look(draft: Request, gpus: int, schedules: tuple[str, ...], best_only: bool = False) -> Search:
    return search(draft.config, draft.device, gpus, tokens=draft.tokens, batch_sequences=draft.batch_sequences, seq_len=draft.seq_len,
                  recompute=draft.recompute, moments=draft.moments, price=draft.price, best_only=best_only, schedules=schedules)  # fmt: skip


def _enough(draft: Request, gpus: int) -> str:
    found = enough(draft.config, draft.device, gpus, batch_sequences=draft.batch_sequences, seq_len=draft.seq_len, recompute=draft.recompute, moments=draft.moments)  # fmt: skip
    if found is None:
        return f"no doubling of them works with a batch of {draft.batch_sequences}; use a larger batch, a device with more memory, or shorter sequences"
    return f"use {found[0]} GPUs ({found[1]} with {found[1].schedule} fits there), or a device with more memory"


def _nothing_fits(draft: Request, gpus: int, nearest: Candidate | None, refused: dict[str, int]) -> str:
    device = draft.device.name
    if nearest is None:
        return f"no layout of {gpus} x {device} works: {'; '.join(f'{reason} ({n})' for reason, n in refused.items())}"
    memory = nearest.memory
    return (
        f"no layout of {gpus} x {device} fits: the smallest, {nearest.layout} with {nearest.layout.schedule}, needs {size(memory.total)} of "
        f"{size(memory.available)} a GPU; {_enough(draft, 2 * gpus)}"
    )


def _train(args: argparse.Namespace, request: Request) -> int:
    plan = training_plan(request)
    memory = plan["memory"]
    if not memory["fits"] and not args.ignore_memory:
        found = _look(request, request.layout.gpus, tuple(SCHEDULES), best_only=True)
        near = (
            f"use {found.feasible[0].layout} with {found.feasible[0].layout.schedule}"
            if found.feasible
            else _enough(request, 2 * request.layout.gpus)
        )
        raise ConfigError(
            f"layout {request.layout} with {request.layout.schedule} needs {size(memory['total'])} of {size(memory['available'])} on the fullest GPU "
            f"({plan_text.parts_of(memory['parts'])}); {near}, or plan it anyway with {memory_check.OPTION}"
        )
    if args.table:
        return _show({"table": plan["comparison"]}, args.json, lambda out: markdown_table(out["table"]))
    if args.explain:
        plan["explanations"] = _rows(explanations(request, plan))
    if args.html:
        from rorqual.html.page import write
        from rorqual.planner.page import plan_page

        _, step = predict(request.config, request.device, request.layout, tokens=request.tokens, batch_sequences=request.batch_sequences, seq_len=request.seq_len)  # fmt: skip
        write(args.html, plan_page(plan, step.simulation))
    _show(plan, args.json, plan_text.training)
    if args.html and not args.json:
        print(f"written: {args.html}")
    return 0


def _search(args: argparse.Namespace, request: Request) -> int:
    if not args.gpus:
        raise ConfigError("--search needs --gpus N")
    found = _look(request, args.gpus, _schedules(args))
    out = {
        "gpus": args.gpus, "gpu": request.device.name, "refused": found.refused,
        "layouts": [{"layout": str(one.layout), "schedule": one.layout.schedule, "bubble": one.bubble, "memory": one.memory.as_json(), **one.prediction.as_json()} for one in found.feasible[:10]],
    }  # fmt: skip
    if not found.feasible:
        out["nearest"] = _nothing_fits(request, args.gpus, found.nearest, found.refused)
    return _show(out, args.json, plan_text.layouts) or (0 if found.feasible else 1)


def _one_device(args: argparse.Namespace) -> int:
    from rorqual.planner.estimate import training_estimate

    config, on_cpu = _config(args.model), args.gpu in (None, "laptop")
    if args.dtype == "fp8":
        raise ConfigError("--memory follows rorqual's own trainer, which trains in BF16 on a GPU; leave --dtype out or use bf16")
    estimate = training_estimate(
        config, micro_batch=args.micro_batch, length=args.seq or 4096, batch=args.batch, dtype="fp32" if on_cpu and args.dtype is None else "bf16",
        compiled=on_cpu, moments=args.moments, recompute=_recompute(args), lora_rank=args.lora,
        what=f"training with adapters of rank {args.lora} on one device" if args.lora else "training on one device",
    )  # fmt: skip
    available = hardware(args.gpu).memory if args.gpu else memory_check.available_memory("cpu")
    out = {"name": args.model, **estimate.as_json(), "available": available, "fits": available is None or estimate.total <= available}
    return _show(out, args.json, plan_text.one_device) or (0 if out["fits"] or args.ignore_memory else 1)


# ---------------------------------------------------------------------- serving, comparison, experts


def _serve(args: argparse.Namespace) -> int:
    device, gpus, config = _device(args, "h800"), args.gpus or 8, _config(args.model)
    plan = plan_serving(config, device, gpus, args.context, price=args.price, tp=args.tp, fp8_cache=args.cache_dtype == "fp8")
    out = {
        "name": args.model, "gpu": device.name, "gpus": gpus, "context": args.context, **plan.as_json(), "published_day": production_day(),
        "cache_schemes_bytes_per_token": {name: 2 * values for name, values in cache_schemes(config).items()},
        "published_units": {phase: dict(unit) for phase, unit in UNITS.items()},
        "published_decode_bound_seconds": {f"{link / 1e9:g} GB/s": decode_seconds_per_token(config, link) for link in (50e9, 900e9)},
    }  # fmt: skip
    if args.explain:
        out["explanations"] = _rows(serving_explanations(config, device, gpus, args.context, plan))
    return _show(out, args.json, plan_text.serving)


def _compare(args: argparse.Namespace) -> int:
    config = _config(args.model)
    out = compare(config, COMPARISONS[args.compare], int(cache_bytes_per_token(config)))
    if args.explain:
        out["explanations"] = _rows(comparison_explanations(out))
    return _show(out, args.json, plan_text.comparison)


def _rows(explained: list[tuple[str, str, str]]) -> list[dict[str, str]]:
    return [{"figure": name, "formula": formula, "inputs": inputs} for name, formula, inputs in explained]


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
    return _show(out, args.json, plan_text.experts)


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
