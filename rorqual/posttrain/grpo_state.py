"""Everything that a run of GRPO is made of between two steps (report section 5.2.2); a checkpoint holds it to the bit.

Policy and optimiser under their own names, `reference.NAME` once the reference model was refreshed (before that it is the base model),
and the rollout that waits for its steps as `buffer.NAME` (posttrain.buffer). The place in the questions is a count of questions drawn:
their order is a function of (seed, epoch) and their answers of (weights, seed, count), so no generator has a state to keep.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rorqual.adapters import lora
from rorqual.checkpoint import resume
from rorqual.model.transformer import CausalLM
from rorqual.posttrain import buffer
from rorqual.posttrain.base import Base
from rorqual.posttrain.buffer import Group
from rorqual.posttrain.folder import check_same_start
from rorqual.posttrain.grpo_config import GRPORun
from rorqual.train.optim import AdamW
from rorqual.train.state import optimizer_for


@dataclass
class GRPOPosition:
    """How far a run is. `drawn` counts questions taken from the order, refills and over-long ones included; `answers` and `tokens` what
    was sampled; `silent` rollouts in a row had no group with a signal."""

    step: int = 0
    rollouts: int = 0
    drawn: int = 0
    answers: int = 0
    tokens: int = 0
    over_long: int = 0
    silent: int = 0
    refreshes: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0


@dataclass
class GRPOState:
    """`waiting` are judged groups that no step has used yet, `figures` what is to be logged about their rollout."""

    model: CausalLM
    optimizer: AdamW
    reference: CausalLM | None
    position: GRPOPosition = field(default_factory=GRPOPosition)
    waiting: list[Group] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def build(cls, run: GRPORun, base: Base, device: torch.device, dtype: torch.dtype) -> GRPOState:
        """A run before its first step. MTP modules take no part in the objective and stay as they are; so does the router where asked."""
        config = run.grpo
        model = base.load(run.weights or "fp32")
        if run.lora is not None:
            lora.apply(model, run.lora).to(device)
            optimizer = AdamW(lora.trainable(model).items(), config.optimizer)
        else:
            trunk = base.config.num_hidden_layers
            for name, parameter in model.named_parameters():
                part = name.split(".")
                if part[1] == "layers" and int(part[2]) >= trunk or config.freeze_router and name.endswith("mlp.gate.weight"):
                    parameter.requires_grad_(False)
            optimizer = optimizer_for(model, config.optimizer, device, dtype)
            optimizer = _over_trained(optimizer, config.optimizer)
        reference = None
        if config.objective.kl_beta > 0:
            reference = lora.merged_copy(model) if run.lora is not None else copy.deepcopy(model)
            reference.requires_grad_(False)
        return cls(model, optimizer, reference)

    @torch.no_grad()
    def refresh_reference(self) -> None:
        """Makes the policy of now the reference model."""
        assert self.reference is not None
        if lora.adapted(self.model):
            lora.merged_copy(self.model, self.reference)
        else:
            now = self.model.state_dict()
            for name, tensor in self.reference.state_dict().items():
                tensor.copy_(now[name])
        self.position.refreshes += 1

    # ------------------------------------------------------------------ what is saved

    def weights(self) -> dict[str, Tensor]:
        """FP32 weights of the whole model by name; with adapters these alone."""
        if lora.adapted(self.model):
            return dict(self.optimizer.master)
        rest = {name: t.detach() for name, t in self.model.state_dict().items() if name not in self.optimizer.master}
        return {**self.optimizer.master, **rest}

    def tensors(self) -> dict[str, Tensor]:
        """Policy, moments and a reference model that is not the base; views, so that loading into them restores the run."""
        named = self.weights() | {f"optimizer.{name}": t for name, t in self.optimizer.state().items()}
        if self.reference is not None and self.position.refreshes:
            named |= {f"reference.{name}": t.detach() for name, t in self.reference.state_dict().items()}
        return resume.split_experts(named)

    def save(self, root: Path, keep: int, fingerprints: Mapping[str, str]) -> None:
        """Writes the checkpoint of this step, in the place of an earlier one of it."""
        folder = resume.step_folder(root, self.position.step)
        held, state = buffer.pack(self.waiting)
        resume.save(
            folder, self.tensors() | {f"buffer.{name}": t for name, t in held.items()},
            {**asdict(self.position), "updates": self.optimizer.updates, "buffer": state, "figures": self.figures, **fingerprints},
            replace=folder.exists(),
        )  # fmt: skip
        resume.prune(root, keep)

    def load(self, folder: Path, fingerprints: Mapping[str, str]) -> None:
        """Restores a checkpoint; CheckpointError where questions or base model are not those of the run."""
        stored = resume.read_state(folder)
        check_same_start(folder, stored, fingerprints)
        self.position = GRPOPosition(**{key: stored[key] for key in asdict(GRPOPosition())})
        held = buffer.room_for(stored["buffer"])
        resume.load(folder, self.tensors() | {f"buffer.{name}": t for name, t in held.items()})
        self.optimizer.updates = int(stored["updates"])
        self.optimizer.sync_parameters()
        self.waiting, self.figures = buffer.unpack(held, stored["buffer"]), stored["figures"]


def _over_trained(optimizer: AdamW, config: Any) -> AdamW:
    """The optimiser without the parameters that are frozen, whose moments would only take room."""
    trained = [(name, p) for name, p in optimizer.parameters.items() if p.requires_grad]
    return AdamW(trained, config, {name: optimizer.master[name] for name, _ in trained})
