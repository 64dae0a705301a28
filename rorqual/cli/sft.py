"""Fine-tune a model on conversations: all weights, or LoRA adapters.

rorqual sft --model runs/laptop --data chat.jsonl --show 3                       # what would be learned, nothing is trained
rorqual sft --model runs/laptop --data chat.jsonl --out runs/laptop-sft
rorqual sft --model V2-Lite --data chat.jsonl --lora 16 --weights bf16 --out runs/lite-sft
rorqual sft --out runs/laptop-sft --resume                                       # exactly where it stopped
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rorqual.cli import memory_check, tuning
from rorqual.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rorqual.posttrain.sft_config import SFTConfig


def main(argv: list[str]) -> int:
    """Runs the verb: 0 when it is finished, 130 or 143 when a signal stopped it after saving. Raises RorqualError."""
    parser = _parser()
    args = parser.parse_args(argv)
    from rorqual.posttrain.sft_config import SFTConfig

    complete = args.model is not None and args.data is not None
    config = tuning.configuration(
        parser, args, SFTConfig, _config, complete=complete, start="--model DIR and --data FILE", needs_out=not args.show
    )
    if args.show:
        return _show(config, args.show)
    check_sft(config, force=args.ignore_memory)
    return _run(config, args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rorqual sft", allow_abbrev=False,
        description="Fine-tune a model of the family on conversations (JSON lines of OpenAI-style messages, with tools and reasoning). The result is a "
        "folder that generate, chat, serve, eval and export take.",
    )  # fmt: skip
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="run or model folder to start from")
    add("--data", type=Path, metavar="FILE", help="JSON lines, each an object with messages and, where there are any, tools")
    tuning.add_options(parser)
    add("--show", type=int, default=0, metavar="N", help="print the first N samples with [what is learned] in brackets, and train nothing")
    add("--epochs", type=int, help="passes over the data (default: 2)")
    add("--lr", type=float, metavar="RATE", help="learning rate at the start (default: 5e-6)")
    add("--final-lr", type=float, metavar="RATE", help="learning rate at the end of the cosine (default: 1e-6, or a fifth of --lr)")
    add("--batch", type=int, metavar="N", help="packed sequences of a step (default: 8)")
    add("--micro-batch", type=int, metavar="N", help="packed sequences at a time; changes memory and speed only (default: 1)")
    add("--max-tokens", type=int, metavar="N", help="longest sample and length of a packed sequence (default: 4096, or the model's limit)")
    add("--over-long", choices=("drop", "truncate"), help="what to do with longer samples; they are counted (default: drop)")
    add("--style", choices=("v3", "r1", "v3.1"), help="chat style (default: the model's own)")
    add("--no-reasoning-loss", action="store_true", help="read the reasoning without learning it")
    tuning.add_lora(parser)
    add("--mtp-weight", type=float, metavar="W", help="weight of the MTP modules' loss (default: 0.1)")
    add("--bias-speed", type=float, metavar="S", help="speed of the router bias (default: 0, frozen)")
    add("--checkpoint-every", type=int, metavar="STEPS", help="optimiser steps between checkpoints (default: 200)")
    add("--device", help="auto, cpu, cuda (default: auto)")
    add("--seed", type=int, help="of the order of samples and of new adapters (default: 0)")
    memory_check.add_option(parser)
    return parser


def _config(args: argparse.Namespace) -> SFTConfig:
    from rorqual.posttrain.base import open_base
    from rorqual.posttrain.sft_config import RenderConfig, SFTConfig
    from rorqual.tokenizer import templates

    lora = tuning.lora_of(args, args.seed or 0)
    base = open_base(args.model)
    style = args.style or templates.style_of(base.tokenizer())
    if style == "template":
        raise ConfigError(
            f"{args.model} brings a chat template of its own, whose parts have no known author; choose a style with --style v3, r1 or v3.1"
        )
    render: dict[str, Any] = {"style": style, "max_tokens": args.max_tokens or min(4096, base.config.max_position_embeddings)}
    render |= {"over_long": args.over_long} if args.over_long else {}
    render |= {"reasoning_in_loss": False} if args.no_reasoning_loss else {}
    given = {
        "epochs": args.epochs, "learning_rate": args.lr, "batch_sequences": args.batch, "micro_batch_sequences": args.micro_batch,
        "final_learning_rate": args.final_lr if args.final_lr is not None or args.lr is None else args.lr / 5, "weights": args.weights,
        "mtp_loss_weight": args.mtp_weight, "bias_update_speed": args.bias_speed, "checkpoint_every_steps": args.checkpoint_every,
        "device": args.device, "seed": args.seed,
    }  # fmt: skip
    config = SFTConfig(model=str(args.model), data=str(args.data), render=RenderConfig(**render), lora=lora)
    return replace(config, **{name: value for name, value in given.items() if value is not None})


def _show(config: SFTConfig, count: int) -> int:
    from rorqual.posttrain import sft_data
    from rorqual.posttrain.base import open_base

    tokenizer, shown, report = open_base(config.model).tokenizer(), 0, sft_data.DataReport()
    for number, one in sft_data.read_lines(Path(config.data), tokenizer, config.render, report):
        if isinstance(one, str):
            print(f"line {number}: left out: {one}\n")
            continue
        shown += 1
        print(f"line {number}: {len(one.ids)} tokens, {sum(one.learned)} learned\n{sft_data.describe(one, tokenizer)}\n")
        if shown == count:
            break
    if not shown:
        raise DataError(f"{config.data} holds nothing to learn from: {report.summary()}")
    return 0


def check_sft(config: SFTConfig, force: bool = False) -> None:
    """Prints what the run needs and refuses what cannot fit, before anything is allocated."""
    from rorqual.kernels import native
    from rorqual.planner.estimate import training_estimate
    from rorqual.posttrain.base import open_base
    from rorqual.posttrain.sft import check

    (device, name, on_cpu), base = tuning.plain_dtype(config), open_base(config.model)
    check(config, base)
    lora: dict[str, Any] = {}
    if config.lora is not None:
        lora = {"lora_rank": config.lora.rank, "lora_targets": config.lora.targets, "base": config.weights or name}
    estimate = training_estimate(
        base.config, micro_batch=min(config.micro_batch_sequences, config.batch_sequences), length=config.render.max_tokens, batch=config.batch_sequences,
        dtype=name, compiled=on_cpu and native.library().library is not None, foreach=not on_cpu, moments=config.optimizer.moments,
        mtp=config.mtp_loss_weight > 0, validation=False, what=f"fine-tuning on {device}", **lora,
    )  # fmt: skip
    memory_check.check_memory(estimate, memory_check.available_memory(device), force)


def _run(config: SFTConfig, args: argparse.Namespace) -> int:
    from rorqual.cli.progress import bytes_bar
    from rorqual.posttrain.sft import run_sft

    with bytes_bar("rendering") as progress:
        result = run_sft(
            config, args.out, resume_run=args.resume, overwrite=args.overwrite, on_data=lambda done, total: progress(done, total, "")
        )
    if result.signal is not None:
        return tuning.stopped("sft", args.out, result.step, result.steps, result.signal)
    print(f"{result.report.summary()}\npacking: {100 * result.packing_efficiency:.1f}% of places hold a token")
    loss = "" if result.loss is None else f", loss {result.loss:.4f} at the end"
    print(f"finished: {result.steps} steps, {result.tokens:,} tokens{loss}; talk to it with: rorqual chat {shlex.quote(str(args.out))}")
    return 0
