"""Model folders for tests: built, taken apart, put together otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from rorqual.checkpoint.logical import logical_tensors
from rorqual.config import ModelConfig
from rorqual.model.transformer import CausalLM

IDS = torch.arange(40).remainder(37).view(2, 20)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def build(config: ModelConfig, seed: int = 0) -> CausalLM:
    model = CausalLM(config)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    for _, bias in model.router_biases():
        bias.normal_(0, 0.01, generator=generator)
    return model


def logits(model: CausalLM) -> Tensor:
    with torch.no_grad():
        return model.logits(model(IDS).hidden)


def same(a: CausalLM, b: CausalLM) -> bool:
    x, y = logical_tensors(a), logical_tensors(b)
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) and x[name].dtype == y[name].dtype for name in x)


def table(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in safetensors.torch.load_file(file).items()}


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any] = lambda _: None, config: dict[str, Any] | None = None) -> None:
    """Changes the tensors (one file, no index afterwards) and fields of config.json."""
    tensors = table(folder)
    change(tensors)
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        file.unlink()
    safetensors.torch.save_file({name: value.clone() for name, value in tensors.items()}, folder / "model.safetensors")
    if config is not None:
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({key: value for key, value in {**raw, **config}.items() if value is not ...}))
