"""Writes a model as an official folder: config.json, tokenizer files, safetensors with per-expert names (specification section 10).

export(model, "tokenizer", "out")                   # appears whole or not at all
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rorqual.checkpoint import tensors
from rorqual.checkpoint.folder import new_folder, require_space, write_json
from rorqual.checkpoint.logical import logical_tensors
from rorqual.checkpoint.names import BIAS, copies, expected
from rorqual.checkpoint.shards import INDEX_NAME, SINGLE_NAME
from rorqual.config import ModelConfig
from rorqual.errors import CheckpointError
from rorqual.model.transformer import CausalLM

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
                   "tokenizer.model", "tiktoken.model", "chat_template.jinja", "generation_config.json")  # fmt: skip
EXPORT_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export(
    model: CausalLM,
    tokenizer: str | Path | None,
    out: str | Path,
    *,
    dtype: str = "fp32",
    shard_size: int = 5_000_000_000,
    replace: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes a model as a folder that transformers, vLLM, SGLang and `load` read; see `export_tensors`."""
    return export_tensors(
        model.config, logical_tensors(model), tokenizer, out, dtype=dtype, shard_size=shard_size, replace=replace, metadata=metadata
    )


def export_tensors(
    config: ModelConfig,
    named: Mapping[str, Tensor],
    tokenizer: str | Path | None,
    out: str | Path,
    *,
    dtype: str = "fp32",
    shard_size: int = 5_000_000_000,
    replace: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes tensors under their official names (a model's, or a moving average of them) as a Hugging Face folder.

    `dtype` is "fp32" or "bf16" for all but the router bias, which is FP32 always. `shard_size` is in bytes; a tensor is never
    cut. MTP modules get their copies of embedding and head; a tied head is not written. `metadata` goes into the header of every file
    and into the index. A folder that exists is refused unless `replace`; a failed write leaves nothing behind.
    """
    if dtype not in EXPORT_DTYPES:
        raise CheckpointError(f"dtype ({dtype!r}) must be one of {', '.join(map(repr, EXPORT_DTYPES))}")
    if shard_size < 1:
        raise CheckpointError(f"shard_size ({shard_size}) must be a positive number of bytes")
    items = _items(config, named, EXPORT_DTYPES[dtype])
    files = _tokenizer_files(Path(tokenizer)) if tokenizer is not None else []
    shards = _cut(items, shard_size)
    _warn_of_readers(config)
    header = {"format": "pt", **(metadata or {})}
    final = Path(out).absolute()
    with new_folder(final, replace) as folder:
        require_space(folder, sum(one.num_bytes for one in items))
        write_json(folder / "config.json", {**config.to_hf(), "torch_dtype": str(EXPORT_DTYPES[dtype]).removeprefix("torch.")})
        for file in files:
            shutil.copyfile(file, folder / file.name)
        for name, part in shards.items():
            tensors.write_file(folder / name, part, header)
        if len(shards) > 1:
            weight_map = {one.name: name for name, part in shards.items() for one in part}
            total = sum(one.num_bytes for one in items)
            write_json(folder / INDEX_NAME, {"metadata": {**(metadata or {}), "total_size": total}, "weight_map": weight_map})
    return final


def _items(config: ModelConfig, named: Mapping[str, Tensor], dtype: torch.dtype) -> list[tensors.Item]:
    items = []
    for name, shape in expected(config):
        if name not in named:
            raise CheckpointError(f"cannot export: tensor {name!r} is missing")
        if tuple(named[name].shape) != shape:
            raise CheckpointError(
                f"cannot export: tensor {name!r} has shape {list(named[name].shape)}, the configuration makes it {list(shape)}"
            )
        items.append(tensors.item(name, named[name], torch.float32 if name.endswith(BIAS) else dtype))
    return items + [tensors.item(name, named[original], dtype) for name, original in copies(config).items()]


def _warn_of_readers(config: ModelConfig) -> None:
    """Public readers have two routers, V3's and V2's without normalisation, and do not look at the fields that say otherwise."""
    v3 = config.scoring_func == "sigmoid" and config.topk_method == "noaux_tc"
    v2 = config.scoring_func == "softmax" and config.topk_method != "noaux_tc" and not config.norm_topk_prob
    if config.n_routed_experts and not (v3 or v2):
        router = f"scoring_func={config.scoring_func!r}, topk_method={config.topk_method!r}, norm_topk_prob={config.norm_topk_prob}"
        warnings.warn(f"no public reader has a router with {router}: others will compute other logits from this folder", stacklevel=4)


def _tokenizer_files(folder: Path) -> list[Path]:
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not any(file.name in ("tokenizer.json", "tiktoken.model", "tokenizer.model") for file in files):
        raise CheckpointError(f"{folder} holds no tokenizer (tokenizer.json, tokenizer.model or tiktoken.model)")
    return files


def _cut(items: list[tensors.Item], shard_size: int) -> dict[str, list[tensors.Item]]:
    """{file name: tensors}, in order, a new file whenever the next tensor would pass `shard_size`."""
    parts: list[list[tensors.Item]] = [[]]
    filled = 0
    for one in items:
        if parts[-1] and filled + one.num_bytes > shard_size:
            parts.append([])
            filled = 0
        parts[-1].append(one)
        filled += one.num_bytes
    if len(parts) == 1:
        return {SINGLE_NAME: parts[0]}
    return {f"model-{number:05d}-of-{len(parts):05d}.safetensors": part for number, part in enumerate(parts, 1)}
