"""What decides a fine-tuning run, as frozen dataclasses that go to JSON and back exactly. No torch.

Report section 5.1: 2 epochs, cosine 5e-6 to 1e-6, samples packed and isolated. Batch size and longest sample are not published; those
here are ours, as are MTP's weight (the last of pre-training) and the frozen router bias.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from rorqual.adapters.config import LoraConfig
from rorqual.errors import ConfigError
from rorqual.train.hyperparams import OptimizerConfig
from rorqual.train.records import number, one_of, whole


@dataclass(frozen=True)
class RenderConfig:
    """How messages become tokens and which of these are learned."""

    style: Literal["v3", "r1", "v3.1"] = "v3"
    reasoning_in_loss: bool = True
    """Whether the text between `<think>` and `</think>` is learned, or only read."""
    max_tokens: int = 4096
    """Longest sample, in tokens that the model reads."""
    over_long: Literal["drop", "truncate"] = "drop"
    """What happens to a longer one; either way it is counted."""

    def __post_init__(self) -> None:
        one_of("render.style", self.style, ("v3", "r1", "v3.1"))
        one_of("render.over_long", self.over_long, ("drop", "truncate"))
        whole("render.max_tokens", self.max_tokens, 1)


@dataclass(frozen=True)
class SFTConfig:
    """A whole fine-tuning run; `model` is a run or a model folder, `data` a file of JSON lines."""

    model: str
    data: str
    kind: Literal["sft"] = "sft"
    render: RenderConfig = field(default_factory=RenderConfig)
    epochs: int = 2
    learning_rate: float = 5e-6
    final_learning_rate: float = 1e-6
    warmup_steps: int = 0
    """Optimiser steps of linear growth from 0; 0 for none."""
    batch_sequences: int = 8
    """Packed sequences of one optimiser step."""
    micro_batch_sequences: int = 1
    """Packed sequences per forward and backward; changes memory and speed, nothing else."""
    mtp_loss_weight: float = 0.1
    """Weight of the MTP modules' loss, which stay in training; 0 leaves them out."""
    aux_loss_alpha: float = 1e-4
    bias_update_speed: float = 0.0
    """Speed of the router bias; 0 freezes it."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig | None = None
    """Trains adapters alone; none for all weights."""
    weights: Literal["fp32", "bf16", "fp8"] | None = None
    """How the base weights are kept under adapters; none as the device computes."""
    checkpoint_every_steps: int = 200
    keep_checkpoints: int = 2
    max_skipped_in_a_row: int = 10
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch_sequences",
            "micro_batch_sequences",
            "checkpoint_every_steps",
            "keep_checkpoints",
            "max_skipped_in_a_row",
        ):
            whole(name, getattr(self, name), 1)
        for name in ("warmup_steps", "seed"):
            whole(name, getattr(self, name), 0)
        if self.threads is not None:
            whole("threads", self.threads, 1)
        number("learning_rate", self.learning_rate, 0, above=True)
        for name in ("final_learning_rate", "mtp_loss_weight", "aux_loss_alpha", "bias_update_speed"):
            number(name, getattr(self, name), 0)
        one_of("dtype", self.dtype, ("auto", "float32", "bfloat16"))
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", self.device):
            raise ConfigError(f"device ({self.device!r}) is not known; use 'auto', 'cpu', 'cuda', 'cuda:0' or 'mps'")
        if self.weights is not None and self.lora is None:
            raise ConfigError(f"weights ({self.weights!r}) goes with lora: without adapters all weights train, in the dtype of the device")

    def rate(self, step: int, total: int) -> float:
        """Learning rate of 0-based `step` of `total`: after the warm-up a half cosine, whose last step has the final rate."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        left = total - 1 - self.warmup_steps
        part = (step - self.warmup_steps) / left if left > 0 else 0.0
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * 0.5 * (1 + math.cos(math.pi * part))
