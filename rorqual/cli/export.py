"""Write a run, or any folder of the family, as a Hugging Face folder or a GGUF file.

rorqual export runs/laptop out                     # what the finished run exported, or its newest checkpoint
rorqual export DeepSeek-V3 out --to bf16           # FP8 to BF16, row block by row block
rorqual export V2-Lite lite.gguf --to gguf:q8_0    # for llama.cpp
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rorqual.errors import CheckpointError

if TYPE_CHECKING:
    from rorqual.checkpoint.source import Source

TARGETS = ("fp32", "bf16", "fp8", "gguf", "gguf:f32", "gguf:f16", "gguf:q8_0")


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code. Raises RorqualError for a source or target that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="rorqual export",
        description="Write a run, or any folder of the DeepSeek-V3 family, as a Hugging Face folder that transformers, vLLM and SGLang load, or as GGUF for llama.cpp. "
        "A killed conversion of a folder goes on where it stopped when the same command is given again.",
    )
    parser.add_argument("source", type=Path, help="run folder (runs/NAME) or a folder with config.json and safetensors files")
    parser.add_argument("out", type=Path, help="folder (for gguf: file) to write; it appears whole or not at all")
    parser.add_argument(
        "--to", "--dtype", dest="to", choices=TARGETS,
        help="dtype of the weights, or GGUF (gguf is gguf:f16); the router bias is always FP32 (default: a folder's own, fp32 for a run)",
    )  # fmt: skip
    parser.add_argument("--mtp", choices=("keep", "drop"), default="keep", help="MTP modules (default: keep; GGUF has no place for them)")
    parser.add_argument("--layers", metavar="A:B", help="only layers A to B-1 of the trunk, renumbered from 0")
    parser.add_argument(
        "--check",
        choices=("hf", "vllm", "llamacpp"),
        help="print the launch line of a bigger engine, and compare the result with it if it is installed",
    )
    parser.add_argument("--shard-size", type=float, default=5.0, metavar="GB", help="largest file, in 10^9 bytes (default: 5)")
    parser.add_argument("--step", type=int, help="of a run: export this step's checkpoint (default: the run's own export, else the newest)")
    parser.add_argument("--ema", action="store_true", help="of a run: export the moving average of the weights, from a checkpoint")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json or tiktoken.model (default: the source's own)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    args = parser.parse_args(argv)
    if args.shard_size <= 0:
        parser.error(f"--shard-size ({args.shard_size}) must be above 0")
    layers = parse_layers(args.layers)
    gguf = args.to is not None and args.to.startswith("gguf")
    if args.check is not None and (args.check == "llamacpp") != gguf:
        parser.error(f"--check {args.check} needs a folder, not --to gguf" if gguf else "--check llamacpp needs --to gguf")
    _check(args.source, args.out)

    source, origin, notices = _source(args, layers)
    tokenizer = args.tokenizer or _tokenizer(args.source, origin)
    if tokenizer is None:
        notices.append("no tokenizer files found, none written; name them with --tokenizer FOLDER")
    for notice in notices:
        print(f"note: {notice}", file=sys.stderr)
    line = _write_gguf(args, source, tokenizer, origin) if gguf else _write_folder(args, source, tokenizer, origin)
    print(line)
    if args.check:
        from rorqual.inference import handover

        print("launch with:", *handover.launch_lines(args.check, args.out, source.config), sep="\n  ", flush=True)
        print(handover.check(args.check, args.out, source, tokenizer))
    return 0


def parse_layers(text: str | None) -> tuple[int, int] | None:
    """`0:4` as (0, 4); CheckpointError for anything else."""
    if text is None:
        return None
    first, colon, last = text.partition(":")
    if not (colon and first.strip().isdecimal() and last.strip().isdecimal()):
        raise CheckpointError(f"--layers ({text!r}) must be two layer numbers, first and one past the last, e.g. 0:4")
    return int(first), int(last)


def _write_folder(args: argparse.Namespace, source: Source, tokenizer: Path | None, origin: Path) -> str:
    from rorqual.checkpoint import card
    from rorqual.checkpoint.convert import convert
    from rorqual.checkpoint.merged import MergedSource
    from rorqual.checkpoint.source import FolderSource
    from rorqual.cli.main import version
    from rorqual.cli.progress import bytes_bar

    merged = isinstance(source, MergedSource)
    kept = "fp8" if merged and source.config.quantization_config is not None else None  # what was merged is quantised anew
    to = args.to or (kept if merged or isinstance(source, FolderSource) else "fp32")
    licence = card.read_licence(origin)
    config = source.config
    named = {None: "the source's dtype", "fp32": "FP32", "bf16": "BF16", "fp8": "FP8 (E4M3 in blocks with scales)"}[to]
    text = card.model_card(
        config,
        title=args.out.resolve().name,
        origin=origin.resolve().name,
        dtype=named,
        num_bytes=_bytes(source, to),
        licence=licence,
        version=version(),
    )
    with bytes_bar("exporting") as progress:
        out = convert(
            source, tokenizer, args.out, to=to, shard_size=int(args.shard_size * 1e9), replace=args.overwrite, extra={"README.md": text},
            copied=licence.files, progress=progress,
        )  # fmt: skip
    files = sorted(out.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    return f"{origin} -> {out}: {len(files)} safetensors file{'s' * (len(files) != 1)}, {size / 1e6:,.1f} MB, {to or 'dtypes kept'}"


def _bytes(source: Source, to: str | None) -> int:
    """Bytes of the weights as they will be written, about."""
    from math import prod

    width = {"fp32": 4, "bf16": 2, "fp8": 1}.get(to or "", 0)
    stored = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1}
    return sum(prod(source.shape(name)) * (width or stored[source.dtype(name)]) for name in source.names())


def _write_gguf(args: argparse.Namespace, source: Source, tokenizer: Path | None, origin: Path) -> str:
    from rorqual.checkpoint import gguf
    from rorqual.cli.progress import bytes_bar

    if args.out.is_dir():
        raise CheckpointError(f"{args.out} is a folder; name the GGUF file to write, e.g. {args.out / 'model.gguf'}")
    if args.out.exists() and not args.overwrite:
        raise CheckpointError(f"{args.out} exists; choose another name or give --overwrite")
    outtype = args.to.partition(":")[2] or "f16"
    with bytes_bar("exporting") as progress:
        out = gguf.write(source, tokenizer, args.out, outtype=outtype, progress=progress)
    return f"{origin} -> {out}: GGUF {outtype}, {out.stat().st_size / 1e6:,.1f} MB"


def _check(source: Path, out: Path) -> None:
    if not source.is_dir():
        raise CheckpointError(f"{source} is not a folder; give a run (runs/NAME) or a folder with config.json and safetensors files")
    if not (source / "config.json").is_file():
        raise CheckpointError(f"{source} has no config.json, so it is neither a run nor a model folder")
    if out.resolve() == source.resolve() or source.resolve().is_relative_to(out.resolve()):
        raise CheckpointError(f"{out} holds the source {source}; choose another name to write to")


def _source(args: argparse.Namespace, layers: tuple[int, int] | None) -> tuple[Source, Path, list[str]]:
    """(tensors to write, where they are from, remarks)."""
    from rorqual.checkpoint.source import FolderSource, ModelSource
    from rorqual.posttrain.folder import adapter_base

    base = adapter_base(args.source)
    if base is not None:
        return _merged(args, base, layers)
    checkpoint = _checkpoint(args.source, args.step, args.ema)
    if checkpoint is None:
        origin = args.source / "hf" if (args.source / "hf" / "config.json").is_file() else args.source
        folder = FolderSource(origin, layers=layers, mtp=args.mtp == "keep")
        return folder, origin, list(folder.notices)
    if layers is not None:
        raise CheckpointError("--layers needs a model folder; export the run first, then cut the folder")
    config, named = _from_checkpoint(args.source, checkpoint, args.ema)
    if args.mtp == "drop":
        config = config.with_(num_nextn_predict_layers=0)
    return ModelSource(config, named), checkpoint, []


def _merged(args: argparse.Namespace, base: Path, layers: tuple[int, int] | None) -> tuple[Source, Path, list[str]]:
    """The base model of a run with an adapter, the adapter added."""
    from rorqual.adapters.peft import Adapter
    from rorqual.checkpoint.merged import MergedSource
    from rorqual.checkpoint.source import FolderSource, ModelSource
    from rorqual.posttrain.base import open_base

    if layers is not None or args.step is not None or args.ema or args.mtp == "drop":
        raise CheckpointError(
            f"{args.source} holds an adapter: export it first, then cut the folder; --layers, --step, --ema and --mtp drop do not apply"
        )
    opened = open_base(base)
    if opened.checkpoint:
        config, named = _from_checkpoint(opened.folder.parents[1], opened.folder, False)
        whole: Source = ModelSource(config, named)
    else:
        whole = FolderSource(opened.folder)
    for adapter in (*opened.adapters, args.source / "adapter"):
        whole = MergedSource(whole, Adapter.read(adapter))
    return whole, opened.folder, list(whole.notices)


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


def _from_checkpoint(run: Path, checkpoint: Path, ema: bool):  # type: ignore[no-untyped-def]
    """(configuration, tensors by official name) of a checkpoint; with `ema` the averages (the router bias has none)."""
    from rorqual.checkpoint import resume
    from rorqual.model.transformer import CausalLM
    from rorqual.train.rundir import read_config

    model = CausalLM(read_config(run).model)
    targets = resume.logical_tensors(model)
    resume.load(checkpoint, targets, partial=True)
    if ema:
        average = resume.split_experts({f"ema.{name}": parameter.detach() for name, parameter in model.named_parameters()})
        resume.load(checkpoint, average, partial=True)
    return model.config, targets


def _tokenizer(source: Path, origin: Path) -> Path | None:
    places = (source / "hf", source / "tokenizer", origin, source / "data" / "tokenizer")
    return next((place for place in places if any((place / name).is_file() for name in ("tokenizer.json", "tiktoken.model"))), None)
