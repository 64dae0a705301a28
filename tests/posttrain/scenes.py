"""Sampled and judged groups of the tiny model, as the training loop would hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rorqual.model.transformer import CausalLM
from rorqual.posttrain.advantages import group_advantages
from rorqual.posttrain.buffer import Group
from rorqual.posttrain.presets import GRPOConfig
from rorqual.posttrain.rollout import LocalRollout, Prompt
from rorqual.posttrain.update import Trainee
from rorqual.train.optim import AdamW
from tests.inference.models import build, prompt

REWARDS = ((1.0, 0.0, 0.0, 1.0), (0.0, 0.0, 1.0, 0.0))


def config(**changes: Any) -> GRPOConfig:
    """Two questions of four answers of at most ten tokens."""
    return GRPOConfig(**{"prompts": 2, "group": 4, "max_new_tokens": 10, "learning_rate": 1e-2, **changes})


def trainee(model: CausalLM | None = None, settings: GRPOConfig | None = None, reference: CausalLM | None = None) -> Trainee:
    """The tiny model with an optimiser over its trunk."""
    model = build() if model is None else model
    named = [(name, p) for name, p in model.named_parameters() if not name.startswith("model.layers.3.")]
    return Trainee(model, AdamW(named, (settings or config()).optimizer), reference)


def groups(model: CausalLM, settings: GRPOConfig, rewards: Sequence[Sequence[float]] = REWARDS) -> list[Group]:
    """Groups that the engine sampled, with these rewards."""
    lengths = (5, 18, 9, 33)[: len(rewards)]
    prompts = [Prompt(prompt(length, number)) for number, length in enumerate(lengths)]
    sampled = LocalRollout(model, None).sample(prompts, settings, list(range(len(prompts))))
    table = torch.tensor(rewards)
    found = group_advantages(table, settings.objective.scale)
    return [
        Group(number, answers, table[number], found.values[number], bool(found.signal[number])) for number, answers in enumerate(sampled)
    ]
