"""The model of a folder that a user names: a run (its export, else its newest checkpoint) or any Hugging Face folder of the family."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rorqual.errors import CheckpointError

if TYPE_CHECKING:
    from rorqual.model.transformer import CausalLM
    from rorqual.tokenizer.bpe import Tokenizer


@dataclass(frozen=True)
class LoadedFolder:
    """A model with its tokenizer; `origin` is the folder that the weights were read from."""

    model: CausalLM
    tokenizer: Tokenizer
    origin: Path
    notices: list[str]


def load_folder(
    source: Path, tokenizer_folder: Path | None = None, *, weights: str | None = None, layers: tuple[int, int] | None = None,
    device: str = "cpu",
) -> LoadedFolder:  # fmt: skip
    """Reads model and tokenizer (its own, or the one named); CheckpointError or TokenizerError for a folder that is neither a run nor a model.

    weights: "fp32", "bf16" or "fp8" (checkpoint.reader.load); None is FP32 where that fits into memory, else the folder's own dtype, with a
    notice; on another device than the CPU None is BF16. layers: only this range of the trunk.
    """
    if not (source / "config.json").is_file():
        what = "is not a folder" if not source.is_dir() else "has no config.json, so it is neither a run nor a model folder"
        raise CheckpointError(f"{source} {what}; give a run (runs/NAME) or a folder with config.json and safetensors files")

    from rorqual.checkpoint import hf, resume
    from rorqual.cli.progress import bytes_bar
    from rorqual.posttrain.folder import adapter_base
    from rorqual.tokenizer import bpe

    base = adapter_base(source)
    if base is not None:
        adapted = _adapted(source, base, tokenizer_folder, weights, layers)
        _move(adapted.model, device, weights)
        return adapted
    exported = source / "hf"
    is_run = (source / "checkpoints").is_dir() or (source / "lineage.json").is_file() or (exported / "config.json").is_file()
    places = [source / "tokenizer", source / "data" / "tokenizer"] if is_run else []
    if is_run and not (exported / "config.json").is_file():
        newest = resume.latest(source / "checkpoints")
        if newest is None:
            raise CheckpointError(f"{source} is a run without a whole checkpoint yet; let it reach its first one")
        if weights not in (None, "fp32") or layers is not None:
            raise CheckpointError(f"{source} is a run without an export: its checkpoint is read in FP32 and whole; export it first")
        model, origin, notices = _of_checkpoint(source, newest), newest, []
        _move(model, device, weights)
    else:
        origin = exported if is_run else source
        given = weights or (None if device == "cpu" else "bf16")
        chosen, why = (given, []) if given else fitting_weights(origin, layers)
        with bytes_bar("loading") as progress:
            model, report = hf.load(origin, weights=chosen, layers=layers, device=device, progress=progress)
        notices = why + report.notices
    kinds = ("tokenizer.json", "tiktoken.model")
    folder = tokenizer_folder or next((place for place in [origin, *places] if any((place / kind).is_file() for kind in kinds)), None)
    if folder is None:
        raise CheckpointError(
            f"{source} has no tokenizer.json and no tiktoken.model; name the folder that has it with --tokenizer, for a run its data folder's tokenizer/"
        )
    tokenizer = bpe.load(folder)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"{folder} has token ids up to {tokenizer.vocab_size - 1}, the model's embedding ends at {model.config.vocab_size - 1}; this tokenizer belongs to another model"
        )
    return LoadedFolder(model, tokenizer, origin, notices)


def _move(model: CausalLM, device: str, weights: str | None) -> None:
    """Moves a model off the CPU, in BF16 unless weights say otherwise; the router stays in FP32."""
    import torch

    if device != "cpu":
        model.to(device, torch.bfloat16 if weights in (None, "bf16") else None)


def _adapted(source: Path, base: Path, tokenizer_folder: Path | None, weights: str | None, layers: tuple[int, int] | None) -> LoadedFolder:
    """The base model of a run with an adapter, merged; over weights kept in FP8 the adapter stays apart."""
    from rorqual.adapters import lora, peft

    if layers is not None:
        raise CheckpointError(f"{source} holds an adapter, which belongs to the whole model; export it first")
    own = source / "tokenizer"
    loaded = load_folder(base, tokenizer_folder or (own if (own / "tokenizer.json").is_file() else None), weights=weights)
    peft.load(loaded.model, source / "adapter")
    if not any(hasattr(layer.base, "codes") for layer in lora.adapted(loaded.model).values()):
        lora.merge(loaded.model)
    return LoadedFolder(loaded.model, loaded.tokenizer, loaded.origin, [*loaded.notices, f"adapter of {source} over {base}"])


def fitting_weights(folder: Path, layers: tuple[int, int] | None = None) -> tuple[str, list[str]]:
    """("fp32", nothing) where an FP32 copy of the folder fits into the memory that is free, else how it is stored and a remark."""
    from rorqual.checkpoint.source import FolderSource
    from rorqual.cli.partial import RESERVE
    from rorqual.kernels.memory import available_bytes
    from rorqual.planner.inventory import inventory

    free = available_bytes()
    with FolderSource(folder, layers=layers) as source:
        plain = source.config.with_(quantization_config=None)
        need = sum(one.bytes for one in inventory(plain, "F32"))
        if free is None or need + RESERVE <= free or source.dtype("model.norm.weight") == "F32":
            return "fp32", []
        kept = "fp8" if source.config.quantization_config is not None else "bf16"
    return kept, [f"weights take {need / 1e9:.1f} GB in FP32, {free / 1e9:.1f} GB are free: kept as {kept}"]


def _of_checkpoint(run: Path, checkpoint: Path) -> CausalLM:
    from rorqual.checkpoint import resume
    from rorqual.model.transformer import CausalLM
    from rorqual.train.rundir import read_config

    model = CausalLM(read_config(run).model)
    resume.load(checkpoint, resume.logical_tensors(model), partial=True)
    return model
