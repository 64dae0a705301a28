"""What the verbs that train after pre-training (sft, reward-model, grpo) have in common: their run folder's options, LoRA's, and how a run goes on.

tuning.add_options(parser)                                          # --out --resume --overwrite
config = tuning.configuration(parser, args, SFTConfig, _config, complete=..., start="--model DIR and --data FILE")
return tuning.stopped("sft", args.out, result.step, result.steps, result.signal)
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rorqual.errors import ConfigError

if TYPE_CHECKING:
    from rorqual.adapters.config import LoraConfig

T = TypeVar("T")

FREE = ("out", "resume", "overwrite", "ignore_memory", "api_key_env", "show")
"""Options that are no part of a run's configuration."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds --out, --resume and --overwrite."""
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder")
    parser.add_argument("--resume", action="store_true", help="continue the run in OUT from its newest checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that OUT holds")


def add_lora(parser: argparse.ArgumentParser) -> None:
    """Adds --lora, --lora-alpha, --lora-targets and --weights."""
    add = parser.add_argument
    add("--lora", type=int, metavar="RANK", help="train adapters of this rank, over frozen base weights")
    add("--lora-alpha", type=float, metavar="A", help="adapters count A / RANK times (default: twice the rank)")
    add("--lora-targets", metavar="A,B", help="of attention, ffn, experts (default: attention,ffn)")
    add("--weights", choices=("fp32", "bf16", "fp8"), help="with --lora: how base weights are kept (default: as the device computes)")


def lora_of(args: argparse.Namespace, seed: int) -> LoraConfig | None:
    """The adapters that the options ask for, None for all weights; ConfigError for an option that goes with --lora alone."""
    from rorqual.adapters.config import LoraConfig

    for name in ("lora_alpha", "lora_targets"):
        if getattr(args, name) is not None and args.lora is None:
            raise ConfigError(f"--{name.replace('_', '-')} goes with --lora RANK")
    if args.lora is None:
        return None
    targets = tuple(args.lora_targets.split(",")) if args.lora_targets else ("attention", "ffn")
    return LoraConfig(rank=args.lora, alpha=args.lora_alpha, targets=targets, seed=seed)


def configuration(
    parser: argparse.ArgumentParser, args: argparse.Namespace, kind: type[T], build: Callable[[argparse.Namespace], T], *,
    complete: bool, start: str, needs_out: bool = True,
) -> T:  # fmt: skip
    """With --resume alone the configuration of the run in OUT, else what `build` makes of the options. Ends as the parser does on a wrong mixture.

    complete: whether the options say where a run begins; start: which ones these are, in words.
    """
    if args.resume and args.overwrite:
        parser.error("--resume continues a run as it is; it does not go with --overwrite")
    if args.out is None and (needs_out or args.resume):
        parser.error("give --out DIR, the folder of the run")
    given = [name for name, value in vars(args).items() if name not in FREE and value != parser.get_default(name)]
    if args.resume and not given:
        from rorqual.posttrain.folder import read_tuning

        return read_tuning(args.out, kind)
    if not complete and args.resume:
        listed = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        parser.error(
            f"--resume alone goes on as the run was configured; {listed} would have no effect: leave it out, or give {start} as well"
        )
    if not complete:
        parser.error(f"give {start}, or --out DIR --resume")
    return build(args)


def stopped(verb: str, out: Path, step: int, steps: int, signal: int) -> int:
    """Says how a run that a signal stopped goes on; returns the exit code."""
    again = shlex.join(["rorqual", verb, "--out", str(out), "--resume"])
    print(f"stopped at step {step} of {steps}; continue with: {again}", file=sys.stderr)
    return 128 + signal


def plain_dtype(config: Any) -> tuple[str, str, bool]:
    """(device, "fp32" or "bf16", whether it is the CPU) that a run with `device` and `dtype` trains on."""
    from rorqual.train.state import choose_device

    device, dtype = choose_device(config)
    return str(device), "fp32" if str(dtype) == "torch.float32" else "bf16", device.type == "cpu"
