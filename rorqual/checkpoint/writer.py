"""Writes a model in memory as an official folder (specification section 10); folders are converted by convert.py, on the same path.

export(model, "tokenizer", "out")                   # appears whole or not at all
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rorqual.checkpoint.convert import convert
from rorqual.checkpoint.logical import logical_tensors
from rorqual.checkpoint.source import ModelSource
from rorqual.config import ModelConfig
from rorqual.model.transformer import CausalLM


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

    `dtype` is "fp32", "bf16" or "fp8". `shard_size` is in bytes; a tensor is never cut. See `convert` for the rest. A folder that exists
    is refused unless `replace`; a failed write leaves nothing behind.
    """
    source = ModelSource(config, named)
    return convert(source, tokenizer, out, to=dtype, shard_size=shard_size, replace=replace, metadata=metadata)
