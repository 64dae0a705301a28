"""A model of a preset's true shapes with random weights, in memory only: layout and memory tried at full size on one machine."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rorqual.config import ModelConfig
from rorqual.errors import ConfigError
from rorqual.kernels.memory import available_bytes
from rorqual.planner.inventory import FP8_QUANTIZATION, inventory
from rorqual.presets import member

if TYPE_CHECKING:
    from rorqual.model.transformer import CausalLM

RESERVE = 1_500_000_000
"""Bytes left for activations, one dequantised expert and the program itself."""


@dataclass(frozen=True)
class Part:
    """A range of a preset's layers: configuration, bytes of its weights as kept, and whether they are kept in FP8."""

    config: ModelConfig
    num_bytes: int
    fp8: bool


def peak_bytes() -> int:
    """Largest resident set of this process so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def plan_part(preset: str, layers: tuple[int, int] | None, weights: str | None) -> Part:
    """What would be built; ConfigError when it would not fit into memory, with the numbers. weights None is FP32 where it fits, else FP8."""
    config = member(preset).config
    depth = config.num_hidden_layers
    first, last = layers or (0, depth)
    if not 0 <= first < last <= depth:
        raise ConfigError(f"--layers {first}:{last} must be a range inside 0:{depth}, the trunk of {preset}")
    kept = last - first
    dense = min(max(config.first_k_dense_replace - first, 0), kept)
    config = config.with_(num_hidden_layers=kept, first_k_dense_replace=dense, num_nextn_predict_layers=0)
    coded = config.with_(quantization_config=member(preset).quantization_config or dict(FP8_QUANTIZATION))
    sizes = {"fp32": sum(one.bytes for one in inventory(config, "F32")), "fp8": sum(one.bytes for one in inventory(coded))}
    free = available_bytes()
    chosen = weights or ("fp32" if free is None or sizes["fp32"] + RESERVE <= free else "fp8")
    if chosen not in sizes:
        raise ConfigError(f"--weights ({chosen}) must be fp32 or fp8 for random weights")
    if free is not None and sizes[chosen] + RESERVE > free:
        raise ConfigError(
            f"layers {first}:{last} of {preset} take {sizes[chosen] / 1e9:.1f} GB in {chosen} and {RESERVE / 1e9:.1f} GB beside, {free / 1e9:.1f} GB are free; "
            f"use fewer layers{', or --weights fp8 (' + format(sizes['fp8'] / 1e9, '.1f') + ' GB)' if chosen == 'fp32' else ''}"
        )
    return Part(coded if chosen == "fp8" else config, sizes[chosen], chosen == "fp8")


def build_part(part: Part, seed: int = 0) -> CausalLM:
    """The model with random weights; nothing touches the disk."""
    import torch

    from rorqual.fp8 import linear
    from rorqual.model.transformer import CausalLM

    if part.fp8:
        model = linear.empty_model(part.config)
        linear.fill_random(model, seed)
        return model
    with torch.device("cpu"):
        model = CausalLM(part.config)
    model.init_weights(seed)
    return model.eval()


def byte_ids(text: str, vocab_size: int) -> list[int]:
    """Ids of a text without a tokenizer: its UTF-8 bytes. A random model has no words; any ids will do."""
    raw = text.encode("utf-8", "replace") or b"\0"
    return [byte % vocab_size for byte in raw]
