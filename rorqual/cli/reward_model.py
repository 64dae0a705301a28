"""Train a reward model on judged pairs of answers, with a judge's reasoning before the score where there is any.

rorqual reward-model --model runs/sft --data pairs.jsonl --out runs/reward
rorqual reward-model --model runs/sft --data pairs.jsonl --judge http://localhost:8000/v1 --out runs/reward    # reasoning first
rorqual reward-model --model V2-Lite --data pairs.jsonl --lora 16 --weights bf16 --out runs/lite-reward
rorqual reward-model --out runs/reward --resume                                    # exactly where it stopped
rorqual reward-model --model runs/reward --data other.jsonl --evaluate             # share of pairs in the right order
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rorqual.cli import memory_check, tuning
from rorqual.errors import DataError

if TYPE_CHECKING:
    from rorqual.posttrain.reward_config import RewardConfig


def main(argv: list[str]) -> int:
    """Runs the verb: 0 when it is finished, 130 or 143 when a signal stopped it after saving. Raises RorqualError."""
    parser = _parser()
    args = parser.parse_args(argv)
    from rorqual.posttrain.reward_config import RewardConfig

    complete = args.model is not None and args.data is not None
    start = "--model DIR and --data FILE"
    if args.evaluate:
        if not complete or args.resume or args.overwrite:
            parser.error(f"--evaluate trains nothing: give {start}, without --resume and --overwrite")
        return _evaluate(args)
    config = tuning.configuration(parser, args, RewardConfig, _config, complete=complete, start=start)
    if args.judge:
        config = replace(config, data=str(_judge(args)))
    return _train(config, args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rorqual reward-model", allow_abbrev=False,
        description="Train a reward model (Bradley-Terry) on pairs of a better and a worse answer. The result is a folder for `--reward-model` of distill and grpo.",
    )  # fmt: skip
    add = parser.add_argument
    add(
        "--model", type=Path, metavar="DIR", help="run or model folder to start from, an SFT run as a rule; with --evaluate: a reward model"
    )
    add(
        "--data",
        type=Path,
        metavar="FILE",
        help="JSON lines with messages (or prompt), chosen, rejected; reference, reasonings, scores where there are any",
    )
    tuning.add_options(parser)
    add("--evaluate", action="store_true", help="train nothing: print how many pairs of DATA the model puts in order")
    add(
        "--judge",
        metavar="DIR|URL",
        help="have a chat model reason about and grade every answer first; pairs that it disagrees with are left out",
    )
    add("--votes", type=_positive, default=4, metavar="N", help="with --judge: votes on each answer or pair (default: 4)")
    add("--judge-tokens", type=_positive, default=1024, metavar="N", help="with --judge: most tokens of a vote (default: 1024)")
    add("--api-key-env", default="OPENAI_API_KEY", metavar="VAR", help="environment variable with the judge's key, if it wants one")
    add("--min-gap", type=float, metavar="X", help="least gap of two scores, where the pairs have scores (default: 1)")
    add(
        "--reasoning",
        choices=("auto", "on", "off"),
        help="whether a judge's reasoning stands before the score (default: auto, where the data has it)",
    )
    add("--reasoning-weight", type=float, metavar="W", help="weight of the loss on the reasoning's tokens (default: 1)")
    add(
        "--max-reasoning-tokens",
        type=_positive,
        metavar="N",
        help="most tokens that the trained model reasons before a score (default: 1024)",
    )
    add("--epochs", type=_positive, metavar="N", help="passes over the data (default: 1)")
    add("--batch", type=_positive, metavar="N", help="pairs of a step (default: 256)")
    add("--lr", type=float, metavar="RATE", help="learning rate, falling to a tenth (default: 6e-6)")
    add(
        "--max-tokens", type=_positive, metavar="N", help="longest question with answer and reasoning (default: 8192, or the model's limit)"
    )
    add("--micro-batch-tokens", type=_positive, metavar="N", help="tokens of a packed row; changes memory and speed only (default: 8192)")
    tuning.add_lora(parser)
    add("--validation", type=float, metavar="SHARE", help="share of the questions held out to measure accuracy (default: 0.05)")
    add("--centre", type=float, metavar="W", help="weight of the square of a pair's summed scores, which keeps them near 0 (default: 0)")
    add("--checkpoint-every", type=_positive, metavar="STEPS", help="optimiser steps between checkpoints (default: 100)")
    add("--device", help="auto, cpu, cuda (default: auto)")
    add("--seed", type=int, help="of the order of pairs, the held-out questions and new adapters (default: 0)")
    memory_check.add_option(parser)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def _config(args: argparse.Namespace) -> RewardConfig:
    from rorqual.posttrain.reward_config import RewardConfig

    names = {
        "epochs": args.epochs, "batch": args.batch, "learning_rate": args.lr, "max_tokens": args.max_tokens, "min_gap": args.min_gap,
        "reasoning": args.reasoning, "reasoning_weight": args.reasoning_weight, "max_reasoning_tokens": args.max_reasoning_tokens,
        "micro_batch_tokens": args.micro_batch_tokens, "validation_share": args.validation, "centre_weight": args.centre,
        "checkpoint_every_steps": args.checkpoint_every, "device": args.device, "seed": args.seed,
        "weights": args.weights, "lora": tuning.lora_of(args, args.seed or 0),
    }  # fmt: skip
    return replace(RewardConfig(str(args.model), str(args.data)), **{name: value for name, value in names.items() if value is not None})


def check_reward(config: RewardConfig, row: int, force: bool = False) -> None:
    """Prints what training needs whose longest row has `row` tokens, and refuses what cannot fit, before anything is allocated."""
    from rorqual.kernels import native
    from rorqual.planner.estimate import training_estimate
    from rorqual.posttrain.base import open_base

    device, name, on_cpu = tuning.plain_dtype(config)
    lora: dict[str, Any] = {}
    if config.lora is not None:
        lora = {"lora_rank": config.lora.rank, "lora_targets": config.lora.targets, "base": config.weights or name}
    estimate = training_estimate(
        open_base(config.model).config, micro_batch=1, length=row, batch=2, dtype=name, compiled=on_cpu and native.library().library is not None,
        foreach=not on_cpu, moments=config.optimizer.moments, mtp=False, validation=False, what=f"training a reward model on {device}", **lora,
    )  # fmt: skip
    memory_check.check_memory(estimate, memory_check.available_memory(device), force)


def _judge(args: argparse.Namespace) -> Path:
    """The data with a judge's reasoning, in a file beside the run's folder that a second call takes as it is."""
    from rorqual.cli.progress import BuildProgress
    from rorqual.posttrain.generate import Drawing, open_teacher
    from rorqual.posttrain.judge import Judge, JudgeConfig
    from rorqual.posttrain.preferences import annotate

    out = Path(f"{args.out}.judged.jsonl")
    if out.exists():
        print(f"{out} is there: taken as it is", file=sys.stderr)
        return out
    if not args.judge.startswith(("http://", "https://")):
        memory_check.check_models([Path(args.judge)], "judging", weights="fp32", force=args.ignore_memory)
    settings = JudgeConfig(
        args.votes, drawing=Drawing(temperature=0.7 if args.votes > 1 else 0.0, max_tokens=args.judge_tokens, seed=args.seed or 0)
    )
    judge = Judge(open_teacher(args.judge, api_key=os.environ.get(args.api_key_env)), settings)
    with BuildProgress() as bars:
        counts = annotate(args.data, judge, out, bars)
    if not counts["kept"]:
        out.unlink()
        reasons = ", ".join(f"{count:,} x {what}" for what, count in counts.items() if what != "kept")
        raise DataError(
            f"the judge left no pair of {args.data} ({reasons}); use a judge that ends with the line it is asked for, or more --judge-tokens"
        )
    print(f"{out}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()), file=sys.stderr)
    return out


def _train(config: RewardConfig, args: argparse.Namespace) -> int:
    from rorqual.posttrain.reward_training import train_reward

    result = train_reward(
        config,
        args.out,
        resume_run=args.resume,
        overwrite=args.overwrite,
        on_data=lambda row: check_reward(config, row, args.ignore_memory),
    )
    print(result.cases.summary(), file=sys.stderr)
    if result.signal is not None:
        return tuning.stopped("reward-model", args.out, result.step, result.steps, result.signal)
    print(f"{result.folder}: {result.steps} steps, score {'behind the reasoning' if result.reasoning else 'read off the answer'}")
    if result.accuracy is not None and result.interval is not None:
        low, high = result.interval
        print(f"held-out accuracy {result.accuracy:.3f} ({low:.3f} to {high:.3f}, {result.held_out} cases)")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from rorqual.eval.metrics import wilson
    from rorqual.posttrain.reward_data import read_cases
    from rorqual.posttrain.reward_model import RewardModel

    memory_check.check_models([args.model], "scoring", weights="fp32", force=args.ignore_memory)
    reward = RewardModel.load(args.model)
    cases = read_cases(args.data, 1.0 if args.min_gap is None else args.min_gap)
    pairs = [case.items for case in cases.items if len(case.items) == 2]
    scores = reward.scores([replace(item, reasoning="") for pair in pairs for item in pair])
    found = [(scores[at], scores[at + 1]) for at in range(0, len(scores), 2)]
    judged = [(a, b) for a, b in found if a == a and b == b]
    right = sum(a > b for a, b in judged)
    low, high = wilson(float(right), len(judged)) if judged else (0.0, 1.0)
    print(cases.summary(), file=sys.stderr)
    print(
        f"{right} of {len(judged)} pairs in order, {right / max(1, len(judged)):.3f} ({low:.3f} to {high:.3f}); {len(found) - len(judged)} without a score"
    )
    return 0
