"""Reads an official folder into a model, verified whole before memory is taken (specification section 10).

    model, report = load("DeepSeek-V2-Lite")

Nothing is made up, nothing is dropped in silence: the report lists every name loaded, skipped and missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import torch

from rorqual.checkpoint import tensors
from rorqual.checkpoint.logical import logical_tensors
from rorqual.checkpoint.names import BIAS, match
from rorqual.checkpoint.shards import Entry, ShardFolder, open_folder
from rorqual.config import ModelConfig
from rorqual.errors import CheckpointError
from rorqual.model.transformer import CausalLM

_WEIGHT_DTYPES = ("F32", "BF16", "F16")


@dataclass
class LoadReport:
    """What became of every name of a folder; `config` is the one the model was built with."""

    config: ModelConfig
    loaded: list[str]
    skipped: list[str]
    missing: list[str]
    notices: list[str] = field(default_factory=list)


def load(folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[CausalLM, LoadReport]:
    """Reads a folder of the family into a new model on `device`, weights in `dtype`, the router in FP32 as always.

    Nothing is allocated before config, index, headers, names and shapes agree; memory is the model plus one tensor.
    Raises ConfigError or CheckpointError with the field, file or tensor at fault. Python files of the folder are not looked at.
    """
    config = ModelConfig.from_file(Path(folder))
    shards = open_folder(Path(folder))
    found = match(config, {name: entry.shape for name, entry in shards.tensors.items()})
    _check_dtypes(found.sources, shards.tensors)
    notices = shards.notices + found.notices
    if found.config.quantization_config is not None:
        notices.append("config.json has quantization_config, the weights are not quantised: read as they are")
        found.config = replace(found.config, quantization_config=None)
    biases = [name for name in found.sources if name.endswith(BIAS) and shards.tensors[found.sources[name]].dtype != "F32"]
    if biases:
        stored = shards.tensors[found.sources[biases[0]]].dtype
        notices.append(f"router bias is stored as {stored} in {len(biases)} layer(s), raised to FP32: what rounding took from it is lost")
    model = _empty_model(found.config, torch.device(device), dtype)
    targets = logical_tensors(model)
    with ExitStack() as stack:
        files = {path: stack.enter_context(path.open("rb")) for path in shards.files}
        for official, target in targets.items():
            entry = shards.tensors[found.sources[official]]
            tensors.read_into(files[entry.file], entry, target)
        notices += _differing_copies(found.repeated, found.sources, shards, files)
    loaded = [*found.sources.values(), *found.repeated]
    return model, LoadReport(found.config, loaded, found.skipped, found.missing, notices)


def _check_dtypes(sources: Mapping[str, str], entries: Mapping[str, Entry]) -> None:
    for name in sources.values():
        dtype = entries[name].dtype
        if dtype.startswith("F8"):
            raise CheckpointError(
                f"tensor {name!r} is FP8 ({dtype}); quantised weights are not read here: convert the folder to BF16 first"
            )
        if dtype not in _WEIGHT_DTYPES:
            raise CheckpointError(f"tensor {name!r} has dtype {dtype}; weights must be one of {', '.join(_WEIGHT_DTYPES)}")


def _empty_model(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> CausalLM:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return CausalLM(config)
    finally:
        torch.set_default_dtype(before)


def _differing_copies(
    repeated: Mapping[str, str], sources: Mapping[str, str], shards: ShardFolder, files: Mapping[Path, BinaryIO]
) -> list[str]:
    """The model shares embedding and head, so a copy with other values loses: a notice says so."""
    notices = []
    for name, original in repeated.items():
        a, b = shards.tensors[name], shards.tensors[sources[original]]
        if not tensors.same_values((files[a.file], a), (files[b.file], b)):
            notices.append(f"{name} differs from {sources[original]}, which is used in its place: this model shares the two")
    return notices
