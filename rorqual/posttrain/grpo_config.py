"""What decides a whole run of GRPO: where it starts, what it is asked, and the settings of `presets`. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from rorqual.adapters.config import LoraConfig
from rorqual.errors import ConfigError
from rorqual.posttrain.presets import GRPOConfig
from rorqual.train.records import number, one_of, whole


@dataclass(frozen=True)
class GRPORun:
    """`model` is a run or a model folder; questions come from `data`, a file of JSON lines, or are generated for `tasks`."""

    model: str
    kind: Literal["grpo"] = "grpo"
    data: str | None = None
    tasks: tuple[str, ...] = ()
    """Of reasoning-gym's trusted ones (posttrain.problems)."""
    task_size: int = 2000
    """Questions generated for each task."""
    preset: str = ""
    """The published settings that `grpo` began from, for the printed formula; "" for none."""
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    reward_model: str | None = None
    """What gives the reward `model`: a reward model's folder, or any model folder or server's address as a judge."""
    rollout_url: str | None = None
    """A server that answers in place of the engine in this process (posttrain.remote)."""
    lora: LoraConfig | None = None
    """Trains adapters alone; none for all weights."""
    weights: Literal["fp32", "bf16", "fp8"] | None = None
    """How the base weights are kept under adapters; none as the device computes."""
    max_seconds: float | None = None
    """Ends the run after the step that passes this many seconds of work, interrupted ones included; none for all steps."""
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        whole("task_size", self.task_size, 1)
        if self.threads is not None:
            whole("threads", self.threads, 1)
        if self.max_seconds is not None:
            number("max_seconds", self.max_seconds, 0, above=True)
        one_of("dtype", self.dtype, ("auto", "float32", "bfloat16"))
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", self.device):
            raise ConfigError(f"device ({self.device!r}) is not known; use 'auto', 'cpu', 'cuda', 'cuda:0' or 'mps'")
        if self.data is not None and self.tasks:
            raise ConfigError(f"data ({self.data!r}) and tasks ({', '.join(self.tasks)}) are both given; use one of them")
        if self.weights is not None and self.lora is None:
            raise ConfigError(f"weights ({self.weights!r}) goes with lora: without adapters all weights train, in the dtype of the device")
        if self.reward_model is not None and "model" not in self.grpo.rewards:
            raise ConfigError(
                f"reward_model ({self.reward_model!r}) is given, and rewards ({', '.join(self.grpo.rewards)}) have no `model`; add it"
            )
        if self.lora is not None and self.grpo.bias_update_speed:
            raise ConfigError(
                f"bias_update_speed ({self.grpo.bias_update_speed}) must be 0 with lora: an adapter has no place for router biases"
            )

    def rate(self, step: int) -> float:
        """Learning rate of 0-based `step`: linear growth over the warm-up, then constant."""
        warm = self.grpo.warmup_steps
        return self.grpo.learning_rate * min(1.0, (step + 1) / (warm + 1))
