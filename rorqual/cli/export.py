"""Write a run, or any folder of the family, as a Hugging Face folder.

rorqual export runs/laptop out              # what the finished run exported, or its newest checkpoint
rorqual export V2-Lite out --dtype bf16     # read, checked, written anew
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rorqual.errors import CheckpointError

if TYPE_CHECKING:
    from rorqual.model.transformer import CausalLM


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code. Raises RorqualError for a source or target that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="rorqual export",
        description="Write a finished run, or any folder of the DeepSeek-V3 family, as a Hugging Face folder that transformers, vLLM and SGLang load.",
    )
    parser.add_argument("source", type=Path, help="run folder (runs/NAME) or a folder with config.json and safetensors files")
    parser.add_argument("out", type=Path, help="folder to write; it appears whole or not at all")
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16"), default="fp32", help="of all weights but the router bias, which is always FP32 (default: fp32)"
    )
    parser.add_argument("--shard-size", type=float, default=5.0, metavar="GB", help="largest file, in 10^9 bytes (default: 5)")
    parser.add_argument("--step", type=int, help="of a run: export this step's checkpoint (default: the run's own export, else the newest)")
    parser.add_argument("--ema", action="store_true", help="of a run: export the moving average of the weights, from a checkpoint")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json (default: the source's own)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    args = parser.parse_args(argv)
    if args.shard_size <= 0:
        parser.error(f"--shard-size ({args.shard_size}) must be above 0")
    _check(args.source, args.out)

    from rorqual.checkpoint import hf

    checkpoint = _checkpoint(args.source, args.step, args.ema)
    if checkpoint is not None:
        model, notices, origin = _from_checkpoint(args.source, checkpoint, args.ema), [], checkpoint
    else:
        origin = args.source / "hf" if (args.source / "hf" / "config.json").is_file() else args.source
        model, report = hf.load(origin)
        notices = report.notices
    tokenizer = args.tokenizer or _tokenizer(args.source, origin)
    if tokenizer is None:
        notices.append("no tokenizer files found, none written; name them with --tokenizer FOLDER")
    out = hf.export(model, tokenizer, args.out, dtype=args.dtype, shard_size=int(args.shard_size * 1e9), replace=args.overwrite)
    for notice in notices:
        print(f"note: {notice}", file=sys.stderr)
    files = sorted(out.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    print(f"{origin} -> {out}: {len(files)} safetensors file{'s' * (len(files) != 1)}, {size / 1e6:,.1f} MB, {args.dtype}")
    return 0


def _check(source: Path, out: Path) -> None:
    if not source.is_dir():
        raise CheckpointError(f"{source} is not a folder; give a run (runs/NAME) or a folder with config.json and safetensors files")
    if not (source / "config.json").is_file():
        raise CheckpointError(f"{source} has no config.json, so it is neither a run nor a model folder")
    if out.resolve() == source.resolve() or source.resolve().is_relative_to(out.resolve()):
        raise CheckpointError(f"{out} holds the source {source}; choose another name to write to")


def _checkpoint(source: Path, step: int | None, ema: bool) -> Path | None:
    """The training checkpoint to read, or None where a model folder is to be read."""
    from rorqual.checkpoint import resume

    root = source / "checkpoints"
    if not root.is_dir():
        if step is not None or ema:
            raise CheckpointError(f"{source} has no checkpoints, so --step and --ema do not apply to it")
        if not (source / "hf").is_dir() and (source / "lineage.json").is_file():
            raise CheckpointError(f"{source} is a run without a checkpoint yet; export it after its first one")
        return None
    if step is not None:
        if step not in resume.steps(root):
            known = ", ".join(map(str, resume.steps(root))) or "none"
            raise CheckpointError(f"{root} has no checkpoint of step {step}; there are: {known}")
        return resume.step_folder(root, step)
    if not ema and (source / "hf" / "config.json").is_file():
        return None
    newest = resume.latest(root)
    if newest is None:
        raise CheckpointError(f"{root} holds no whole checkpoint; let the run reach its first one")
    return newest


def _from_checkpoint(run: Path, checkpoint: Path, ema: bool) -> CausalLM:
    """The model of a run with the weights of a checkpoint; with `ema`, their average (the router bias has none)."""
    from rorqual.checkpoint import resume
    from rorqual.model.transformer import CausalLM
    from rorqual.train.rundir import read_config

    model = CausalLM(read_config(run).model)
    targets = resume.logical_tensors(model)
    resume.load(checkpoint, targets, partial=True)
    if ema:
        average = resume.split_experts({f"ema.{name}": parameter.detach() for name, parameter in model.named_parameters()})
        resume.load(checkpoint, average, partial=True)
    return model


def _tokenizer(source: Path, origin: Path) -> Path | None:
    places = (origin, source / "hf", source / "tokenizer", source / "data" / "tokenizer")
    return next((place for place in places if any((place / name).is_file() for name in ("tokenizer.json", "tiktoken.model"))), None)
