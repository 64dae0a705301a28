"""What decides the training of a reward model. Batch, rate, epochs and length are DeepSeek-R1's (section 2.3.4), the rest is ours. No torch."""

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
class RewardConfig:
    """A whole run; `model` is a run or a model folder, `data` a file of JSON lines (reward_data)."""

    model: str
    data: str
    kind: Literal["reward-model"] = "reward-model"
    epochs: int = 1
    batch: int = 256
    """Cases of one optimiser step."""
    learning_rate: float = 6e-6
    max_tokens: int = 8192
    """Longest question with answer and reasoning; longer cases are left out and counted. At most the model's context."""
    reasoning: Literal["auto", "on", "off"] = "auto"
    """Whether the judge's reasoning stands before the score; auto: where any line has it."""
    reasoning_weight: float = 1.0
    max_reasoning_tokens: int = 1024
    """Most tokens that the model may reason before it scores, once it is trained."""
    centre_weight: float = 0.0
    min_gap: float = 1.0
    validation_share: float = 0.05
    micro_batch_tokens: int = 8192
    """Tokens of one packed row, which is a forward and backward; changes memory and speed, nothing else."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig | None = None
    """Trains adapters and the score alone; none for all weights."""
    weights: Literal["fp32", "bf16", "fp8"] | None = None
    """How the base weights are kept under adapters; none as the device computes."""
    checkpoint_every_steps: int = 100
    keep_checkpoints: int = 2
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch",
            "max_tokens",
            "max_reasoning_tokens",
            "micro_batch_tokens",
            "checkpoint_every_steps",
            "keep_checkpoints",
        ):
            whole(name, getattr(self, name), 1)
        for name in ("reasoning_weight", "centre_weight", "min_gap", "validation_share"):
            number(name, getattr(self, name), 0)
        number("learning_rate", self.learning_rate, 0, above=True)
        whole("seed", self.seed, 0)
        one_of("reasoning", self.reasoning, ("auto", "on", "off"))
        one_of("dtype", self.dtype, ("auto", "float32", "bfloat16"))
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", self.device):
            raise ConfigError(f"device ({self.device!r}) is not known; use 'auto', 'cpu', 'cuda', 'cuda:0' or 'mps'")
        if self.threads is not None:
            whole("threads", self.threads, 1)
        if self.weights is not None and self.lora is None:
            raise ConfigError(f"weights ({self.weights!r}) goes with lora: without adapters all weights train, in the dtype of the device")
        if self.validation_share >= 1:
            raise ConfigError(f"validation_share ({self.validation_share}) must be below 1")

    def rate(self, step: int, total: int) -> float:
        """Learning rate of 0-based `step` of `total`: half a cosine from the whole rate to a tenth."""
        part = step / (total - 1) if total > 1 else 0.0
        return self.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * part)))
