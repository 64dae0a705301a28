"""Writes a source as an official folder in any dtype, row block by row block (specification sections 6.2 and 10).

    convert(FolderSource("DeepSeek-V3"), "DeepSeek-V3", "out", to="bf16")

Memory is a few blocks of 64 MB whatever the model. Shards are written one after the other under a hidden name, with a journal of those
that are whole: a killed conversion leaves no folder that looks finished, and the next one goes on behind the last whole shard. What
needs no change is copied bit by bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rorqual.checkpoint import folder as folders
from rorqual.checkpoint.names import BIAS, SCALE, copies, quantised
from rorqual.checkpoint.reader import Progress, row_blocks
from rorqual.checkpoint.shards import INDEX_NAME, SINGLE_NAME
from rorqual.checkpoint.source import FolderSource, Source
from rorqual.checkpoint.streams import Planned, TensorFile
from rorqual.checkpoint.tensors import DTYPE_NAMES, DTYPES
from rorqual.config import ModelConfig
from rorqual.errors import CheckpointError
from rorqual.kernels import fp8
from rorqual.planner.inventory import FP8_QUANTIZATION, fp8_block_size

DTYPES_TO = ("fp32", "bf16", "fp8")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
                   "tokenizer.model", "tiktoken.model", "chat_template.jinja", "generation_config.json")  # fmt: skip
JOURNAL = "journal.json"
_CODE_FIELDS = ("auto_map",)  # names Python files, which are not carried along
_STORED = {"fp32": "F32", "bf16": "BF16", "fp8": "BF16"}


@dataclass(frozen=True)
class _Target:
    """One tensor of the output: from which of the source's, and whether it is that tensor's scales."""

    planned: Planned
    origin: str
    scales: bool = False


def convert(
    source: Source,
    tokenizer: str | Path | None,
    out: str | Path,
    *,
    to: str | None = None,
    shard_size: int = 5_000_000_000,
    replace: bool = False,
    metadata: Mapping[str, str] | None = None,
    extra: Mapping[str, str] | None = None,
    copied: tuple[Path, ...] = (),
    progress: Progress | None = None,
) -> Path:
    """Writes `out` and returns it. `to`: "fp32", "bf16" or "fp8" (block-scaled E4M3); None keeps every tensor as it is stored.

    The router bias is FP32 always. FP8 keeps codes and scales where the source has them, else quantises what the layout quantises,
    scales in FP32 (powers of two where the source's scale_fmt asks for them). MTP modules get copies of embedding and head; a tied
    head is not written. `metadata` goes into every header and the index, `extra` are text files by name, `copied` files to copy.
    A folder that exists is refused unless `replace`. CheckpointError before anything is written for what cannot be.
    """
    if to is not None and to not in DTYPES_TO:
        raise CheckpointError(f"dtype ({to!r}) must be one of {', '.join(map(repr, DTYPES_TO))}")
    if shard_size < 1:
        raise CheckpointError(f"shard_size ({shard_size}) must be a positive number of bytes")
    plan = _Plan(source, to)
    files = tokenizer_files(Path(tokenizer)) if tokenizer is not None else []
    shards = _cut(plan.targets, shard_size)
    _warn_of_readers(source.config)
    resumable = isinstance(source, FolderSource)
    final = Path(out).absolute()
    partial = folders.temporary(final)
    key = _fingerprint(source, plan, shard_size, metadata) if isinstance(source, FolderSource) else None
    done = _resumed(final, key, replace)
    if done is None:
        folders.start(final, replace)
        done = {}
    try:
        with folders.explained(final):
            left = sum(one.planned.num_bytes for name, part in shards.items() if name not in done for one in part)
            folders.require_space(partial, left)
            total = sum(one.planned.num_bytes for one in plan.targets)
            written = total - left
            for name, part in shards.items():
                if name in done:
                    continue
                written = _write_shard(partial / name, part, plan, {"format": "pt", **(metadata or {})}, progress, written, total)
                done[name] = (partial / name).stat().st_size
                if key is not None:
                    folders.write_json(partial / JOURNAL, {"key": key, "shards": done})
            _write_rest(partial, plan, shards, files, metadata, {**(extra or {})}, copied)
            (partial / JOURNAL).unlink(missing_ok=True)
            folders.finish(final)
    except BaseException:
        if not resumable:
            folders.abandon(final)
        raise
    if progress is not None:
        progress(total, total, "")
    return final


class _Plan:
    """What every tensor of the output is made of."""

    def __init__(self, source: Source, to: str | None) -> None:
        self.source, self.to = source, to
        raw = source.config.quantization_config
        in_fp8 = to == "fp8" or (to is None and raw is not None)
        self.quantization: Mapping[str, Any] | None = (raw or FP8_QUANTIZATION) if in_fp8 else None
        self.config = source.config.with_(quantization_config=None if self.quantization is None else dict(self.quantization))
        self.block = fp8_block_size(self.config)
        self.targets = list(self._targets())

    def _targets(self) -> Iterator[_Target]:
        repeated: dict[str, list[str]] = {}
        for copy, original in copies(self.source.config).items():
            repeated.setdefault(original, []).append(copy)
        for name in self.source.names():
            shape, dtype = self.source.shape(name), self._dtype(name)
            yield _Target(Planned(name, dtype, shape), name)
            if dtype == "F8_E4M3":
                assert self.block is not None
                kept = self.source.dtype(name) == "F8_E4M3"
                stored = DTYPE_NAMES[self.source.scales(name).dtype] if kept else "F32"
                yield _Target(Planned(name + SCALE, stored, fp8.scale_shape(shape[0], shape[1], self.block)), name, scales=True)
        for original, names in repeated.items():
            for name in names:
                yield _Target(Planned(name, self._dtype(original), self.source.shape(original)), original)

    def _dtype(self, name: str) -> str:
        if name.endswith(BIAS):
            return "F32"
        stored = self.source.dtype(name)
        if self.to is None:
            return stored
        return "F8_E4M3" if self.to == "fp8" and quantised(name) else _STORED[self.to]

    def blocks(self, target: _Target, quantised_scales: dict[str, Tensor]) -> Iterator[Tensor]:
        """The rows of a tensor, block by block. Scales made on the way are left in `quantised_scales`."""
        source, name, planned = self.source, target.origin, target.planned
        shape = planned.shape
        elements = planned.num_bytes // DTYPES[planned.dtype].itemsize
        ranges = row_blocks(shape, 4 * elements, multiple=self.block[0] if self.block else 1)
        if target.scales:
            yield source.scales(name) if source.dtype(name) == "F8_E4M3" else quantised_scales.pop(name)
        elif planned.dtype != "F8_E4M3":
            for begin, end in ranges:
                yield source.rows(name, begin, end).to(DTYPES[planned.dtype])
        elif source.dtype(name) == "F8_E4M3":
            for begin, end in ranges:
                yield source.codes(name, begin, end)
        else:
            assert self.block is not None
            scales = []
            for begin, end in ranges:
                codes, part = fp8.quantize(source.rows(name, begin, end), self.block, scale_fmt=(self.quantization or {}).get("scale_fmt"))
                scales.append(part)
                yield codes
            quantised_scales[name] = torch.cat(scales)


def _write_shard(
    path: Path, part: list[_Target], plan: _Plan, header: Mapping[str, str], progress: Progress | None, done: int, total: int
) -> int:
    """Writes one file; scales of weights that are quantised here wait until their weight is through (they are larger per element)."""
    by_name = {one.planned.name: one for one in part}
    made: dict[str, Tensor] = {}
    for one in part:  # scales come before their codes in a file, because their elements are wider
        if one.scales and plan.source.dtype(one.origin) != "F8_E4M3":
            weight = next(other for other in part if other.origin == one.origin and not other.scales and other.planned.dtype == "F8_E4M3")
            for _ in plan.blocks(weight, made):
                pass
    with TensorFile(path, [one.planned for one in part], header) as file:
        for planned in file.tensors():
            if progress is not None:
                progress(done, total, planned.name)
            target = by_name[planned.name]
            for rows in plan.blocks(target, made if target.scales else {}):
                file.append(rows)
            done += planned.num_bytes
    return done


def _write_rest(
    partial: Path, plan: _Plan, shards: Mapping[str, list[_Target]], files: list[Path], metadata: Mapping[str, str] | None,
    extra: Mapping[str, str], copied: tuple[Path, ...],
) -> None:  # fmt: skip
    """Everything but the weights: config.json, index, tokenizer, texts."""
    folders.write_json(partial / "config.json", config_json(plan))
    for file in [*files, *copied]:
        shutil.copyfile(file, partial / file.name)
    for name, text in extra.items():
        (partial / name).write_text(text, encoding="utf-8")
    if len(shards) > 1:
        weight_map = {one.planned.name: name for name, part in shards.items() for one in part}
        total = sum(one.planned.num_bytes for one in plan.targets)
        folders.write_json(partial / INDEX_NAME, {"metadata": {**(metadata or {}), "total_size": total}, "weight_map": weight_map})


def config_json(plan: _Plan) -> dict[str, Any]:
    """The source's own fields, unknown ones too, under those that follow from the output; fields that name Python files are dropped."""
    raw: dict[str, Any] = {}
    if isinstance(plan.source, FolderSource):
        raw = json.loads((plan.source.path / "config.json").read_text(encoding="utf-8"))
    dropped = {*_CODE_FIELDS, "quantization_config", "num_mtp_layers", "dtype"}
    if any(key in raw for key in ("rope_parameters", "rope_scaling", "rope_theta")):
        dropped |= {"rope_parameters", "rope_scaling", "rope_theta"}
    kept = {key: value for key, value in raw.items() if key not in dropped}
    widest = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[plan._dtype("model.norm.weight")]
    return {**kept, **plan.config.to_hf(), "torch_dtype": widest}


def tokenizer_files(folder: Path) -> list[Path]:
    """Tokenizer, template and generation settings of a folder; CheckpointError where there is no vocabulary among them."""
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not any(file.name in ("tokenizer.json", "tiktoken.model", "tokenizer.model") for file in files):
        raise CheckpointError(f"{folder} holds no tokenizer (tokenizer.json, tokenizer.model or tiktoken.model)")
    return files


def _cut(targets: list[_Target], shard_size: int) -> dict[str, list[_Target]]:
    """{file name: tensors}, in order, a new file whenever the next tensor would pass `shard_size`; a weight stays with its scales."""
    groups: list[list[_Target]] = []
    for one in targets:
        if one.scales:
            groups[-1].append(one)
        else:
            groups.append([one])
    parts: list[list[_Target]] = [[]]
    filled = 0
    for group in groups:
        need = sum(one.planned.num_bytes for one in group)
        if parts[-1] and filled + need > shard_size:
            parts.append([])
            filled = 0
        parts[-1] += group
        filled += need
    if len(parts) == 1:
        return {SINGLE_NAME: parts[0]}
    return {f"model-{number:05d}-of-{len(parts):05d}.safetensors": part for number, part in enumerate(parts, 1)}


def _fingerprint(source: FolderSource, plan: _Plan, shard_size: int, metadata: Mapping[str, str] | None) -> str:
    """Identity of a conversion: the source's files as they are now, and everything that decides the output's bytes."""
    found = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in source.files]
    wanted = [(one.planned.name, source.stored_name(one.origin), one.planned.dtype, one.planned.shape) for one in plan.targets]
    text = json.dumps(
        [str(source.path.resolve()), found, config_json(plan), wanted, shard_size, sorted((metadata or {}).items())], default=str
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _resumed(final: Path, key: str | None, replace: bool) -> dict[str, int] | None:
    """Whole shards of an earlier, killed conversion of the same thing; None to start afresh."""
    partial = folders.temporary(final)
    try:
        journal = json.loads((partial / JOURNAL).read_text(encoding="utf-8"))
        done = {str(name): int(size) for name, size in journal["shards"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if key is None or journal.get("key") != key or (final.exists() and not replace and any(final.iterdir())):
        return None
    whole = {name: size for name, size in done.items() if os.path.basename(name) == name and (partial / name).is_file()}
    return {name: size for name, size in whole.items() if (partial / name).stat().st_size == size}


def _warn_of_readers(config: ModelConfig) -> None:
    """Public readers have two routers, V3's and V2's without normalisation, and do not look at the fields that say otherwise."""
    v3 = config.scoring_func == "sigmoid" and config.topk_method == "noaux_tc"
    v2 = config.scoring_func == "softmax" and config.topk_method != "noaux_tc" and not config.norm_topk_prob
    if config.n_routed_experts and not (v3 or v2):
        router = f"scoring_func={config.scoring_func!r}, topk_method={config.topk_method!r}, norm_topk_prob={config.norm_topk_prob}"
        warnings.warn(f"no public reader has a router with {router}: others will compute other logits from this folder", stacklevel=5)
