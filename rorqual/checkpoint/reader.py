"""Reads an official folder into a model, verified whole before memory is taken (specification section 10).

    model, report = load("DeepSeek-V2-Lite")
    model, report = load("DeepSeek-V3", layers=(0, 4), weights="fp8")

Nothing is made up, nothing is dropped in silence: the report lists every name loaded, skipped and missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rorqual.checkpoint import tensors
from rorqual.checkpoint.logical import logical_tensors
from rorqual.checkpoint.names import EMBEDDING, HEAD
from rorqual.checkpoint.source import FolderSource
from rorqual.config import ModelConfig
from rorqual.errors import CheckpointError
from rorqual.model.transformer import CausalLM

WEIGHTS = ("fp32", "bf16", "fp8")
BLOCK_BYTES = 64_000_000
Progress = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in all, name of the tensor)."""


@dataclass
class LoadReport:
    """What became of every name of a folder; `config` is the one the model was built with."""

    config: ModelConfig
    loaded: list[str]
    skipped: list[str]
    missing: list[str]
    notices: list[str] = field(default_factory=list)


def load(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    weights: str | None = None,
    layers: tuple[int, int] | None = None,
    mtp: bool = True,
    progress: Progress | None = None,
) -> tuple[CausalLM, LoadReport]:
    """Reads a folder of the family into a new model on `device`, the router in FP32 as always.

    weights: "fp32" (FP8 is dequantised once, rounded to BF16 and held in FP32), "bf16", or "fp8" (kept in FP8 and dequantised where it is
    used; only for a folder in FP8). None is `dtype`. layers, mtp: see FolderSource.
    Nothing is allocated before config, index, headers, names, shapes, dtypes and scales agree; memory is the model plus one block of
    a tensor. Raises ConfigError or CheckpointError with the field, file or tensor at fault. Python files of the folder are not looked at.
    """
    if weights is not None and weights not in WEIGHTS:
        raise CheckpointError(f"weights ({weights!r}) must be one of {', '.join(WEIGHTS)}")
    kept = weights == "fp8"
    if kept and dtype != torch.float32:
        raise CheckpointError(f"weights='fp8' computes in FP32; dtype ({dtype}) does not apply")
    if weights in ("fp32", "bf16"):
        dtype = torch.float32 if weights == "fp32" else torch.bfloat16
    with FolderSource(folder, layers=layers, mtp=mtp) as source:
        if kept and source.config.quantization_config is None:
            raise CheckpointError(f"{folder} is not in FP8, so weights='fp8' does not apply; use fp32 or bf16")
        config = source.config if kept else source.config.with_(quantization_config=None)
        model = _empty_model(config, torch.device(device), dtype, kept)
        notices = source.notices + _differing_copies(source)
        _fill(model, source, kept, progress)
        accounts = source.accounts()
    return model, LoadReport(config, accounts.loaded, accounts.skipped, accounts.missing, notices)


def _empty_model(config: ModelConfig, device: torch.device, dtype: torch.dtype, kept: bool) -> CausalLM:
    if kept:
        from rorqual.fp8.linear import empty_model

        return empty_model(config, device)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return CausalLM(config)
    finally:
        torch.set_default_dtype(before)


def _fill(model: CausalLM, source: FolderSource, kept: bool, progress: Progress | None) -> None:
    targets = logical_tensors(model)
    coded: dict[str, tuple[Tensor, Tensor]] = {}
    if kept:
        from rorqual.fp8 import linear

        coded = linear.targets(model)
    names = list(source.names())
    total = sum(source.entry(name).end - source.entry(name).begin for name in names)
    done = 0
    for name in names:
        entry = source.entry(name)
        if progress is not None:
            progress(done, total, name)
        if name in coded:
            codes, scales = coded[name]
            scales.copy_(source.scales(name).float())
        for begin, end in row_blocks(entry.shape, entry.end - entry.begin):
            if name in coded:
                codes[begin:end].view(torch.uint8).copy_(source.codes(name, begin, end))
            else:
                targets[name].detach()[begin:end].copy_(source.rows(name, begin, end))
        done += entry.end - entry.begin
    if progress is not None:
        progress(total, total, "")


def row_blocks(shape: tuple[int, ...], num_bytes: int, block_bytes: int = BLOCK_BYTES, multiple: int = 128) -> list[tuple[int, int]]:
    """Ranges of rows of at most `block_bytes` each, cut at multiples of `multiple` rows where more than one is needed."""
    count = shape[0] if shape else 1
    if num_bytes <= block_bytes or count <= 1:
        return [(0, count)]
    size = max(1, int(block_bytes // (num_bytes / count)))
    size = size // multiple * multiple or min(multiple, count)
    return [(begin, min(begin + size, count)) for begin in range(0, count, size)]


def _differing_copies(source: FolderSource) -> list[str]:
    """The model shares embedding and head, so a copy with other values loses: a notice says so."""
    notices = []
    for stored, original in source.repeated.items():
        if stored.startswith("model.layers.") and not source.config.num_nextn_predict_layers:
            continue
        used = source.stored_name(original if original in (EMBEDDING, HEAD) else EMBEDDING)
        with source.stored_entry(stored).file.open("rb") as a, source.stored_entry(used).file.open("rb") as b:
            same = tensors.same_values((a, source.stored_entry(stored)), (b, source.stored_entry(used)))
        if not same:
            notices.append(f"{stored} differs from {used}, which is used in its place: this model shares the two")
    return notices
