"""Everything a run is made of between two steps, under the name of what it is (design: state is keyed by what it is).

Tensors: parameters (FP32 masters) and router biases under their checkpoint names, moments as `optimizer.exp_avg.NAME` and
`optimizer.exp_avg_sq.NAME`, the moving average as `ema.NAME`; routed experts one by one. All else is a handful of numbers:
the schedules are functions of (step, tokens), the data order one of (seed, sequence number), and nothing draws at random
during training, so there is no generator state to keep (field case F31).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rorqual.checkpoint import resume
from rorqual.errors import CheckpointError, ConfigError, DeviceError
from rorqual.model.transformer import CausalLM
from rorqual.train.ema import EMA
from rorqual.train.hyperparams import RunConfig
from rorqual.train.optim import AdamW, AdamWConfig


@dataclass
class Position:
    """How far a run is. `step` counts completed optimiser steps, skipped ones included; `sequences` is the place in the data."""

    step: int = 0
    tokens: int = 0
    sequences: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0


@dataclass
class TrainState:
    """Model, optimiser, moving average and position; what a checkpoint holds."""

    model: CausalLM
    optimizer: AdamW
    ema: EMA | None
    position: Position

    def weights(self) -> dict[str, Tensor]:
        """FP32 master weights and router biases by model name."""
        names = self.optimizer.master.keys()
        buffers = {name: t.detach() for name, t in self.model.state_dict().items() if name not in names}
        return {**self.optimizer.master, **buffers}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the run, experts apart; views, so that loading into them restores the run."""
        named = self.weights()
        named |= {f"optimizer.{name}": t for name, t in self.optimizer.state().items()}
        if self.ema is not None:
            named |= {f"ema.{name}": t for name, t in self.ema.state().items()}
        return resume.split_experts(named)

    def save(self, root: Path, run: RunConfig, data_fingerprint: str) -> Path:
        """Writes the checkpoint of this step, then drops all but the newest `keep_checkpoints`."""
        folder = resume.step_folder(root, self.position.step)
        counters = {"updates": self.optimizer.updates, "ema_updates": self.ema.updates if self.ema else 0}
        state = {
            **asdict(self.position),
            **counters,
            "seed": run.train.seed,
            "data_seed": run.data.seed,
            "data_fingerprint": data_fingerprint,
        }
        if folder.name not in [resume.step_folder(root, step).name for step in resume.steps(root)]:
            resume.save(folder, self.tensors(), state)
        resume.prune(root, run.train.keep_checkpoints)
        return folder

    def load(self, folder: Path, data_fingerprint: str | None) -> None:
        """Restores the run from a checkpoint. CheckpointError where the data is not what the run was trained on."""
        stored = resume.read_state(folder)
        if data_fingerprint is not None and stored.get("data_fingerprint") != data_fingerprint:
            raise CheckpointError(
                f"{folder} was trained on data with fingerprint {stored.get('data_fingerprint')}, the data folder given has {data_fingerprint}; "
                "give the data of the run, or start a new phase with --init"
            )
        resume.load(folder, self.tensors())
        self.optimizer.updates = int(stored["updates"])
        self.optimizer.sync_parameters()
        if self.ema is not None:
            self.ema.updates = int(stored["ema_updates"])
        self.position = Position(**{key: stored[key] for key in asdict(Position())})


class DeviceChoice(Protocol):
    """What names a device and a compute dtype; TrainConfig is one."""

    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...


def choose_device(config: DeviceChoice) -> tuple[torch.device, torch.dtype]:
    """Device and compute dtype: CUDA in BF16 where there is a CUDA device, else the CPU in FP32 (design section 4)."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"train.device ({name!r}) was asked for, but torch {torch.__version__} sees no CUDA device; use 'cpu', or install a CUDA build"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"train.device ({name!r}) was asked for, but torch {torch.__version__} sees no MPS device; use 'cpu'")
    wanted = config.dtype if config.dtype != "auto" else ("bfloat16" if device.type == "cuda" else "float32")
    return device, getattr(torch, wanted)


def build(run: RunConfig, device: torch.device, dtype: torch.dtype, start: Mapping[str, Tensor] | None = None) -> TrainState:
    """A run before its first step: weights drawn from (seed, name), or `start` where a parent gives them.

    In BF16 the parameters are copies of FP32 masters; the router (by its own doing) and the head keep FP32.
    """
    model = CausalLM(run.model)
    if start is None:
        model.init_weights(run.train.seed)
    else:
        load_weights(model, start)
    optimizer = optimizer_for(model, run.train.optimizer, device, dtype)
    ema = None if run.train.ema_decay is None else EMA(optimizer.master, run.train.ema_decay)
    return TrainState(model, optimizer, ema, Position())


def optimizer_for(model: CausalLM, config: AdamWConfig, device: torch.device, dtype: torch.dtype) -> AdamW:
    """Moves a model to its device and compute dtype; the optimiser over all of it keeps FP32 masters."""
    model.to(device)
    masters: dict[str, Tensor] = {}
    if dtype != torch.float32:
        masters = {name: p.detach().clone() for name, p in model.named_parameters()}
        model.to(dtype)
        if model.lm_head is not None:
            model.lm_head.weight.data = masters["lm_head.weight"].clone()
    return AdamW(model.named_parameters(), config, masters)


@torch.no_grad()
def load_weights(model: CausalLM, start: Mapping[str, Tensor]) -> None:
    """Copies weights given by state-dict name into the model. ConfigError where a name or a shape differs."""
    ours = model.state_dict()
    if wrong := sorted(
        name for name in ours.keys() | start.keys() if name not in ours or name not in start or ours[name].shape != start[name].shape
    ):
        raise ConfigError(
            f"the parent's weights do not fit model: {', '.join(wrong[:5])} ({len(wrong)} tensors) are missing, extra or of another shape"
        )
    for name, tensor in ours.items():
        tensor.copy_(start[name])
