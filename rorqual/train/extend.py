"""A new phase from what an earlier one learned: context extension, more data, another schedule (report section 4.3).

A phase starts from the weights and router biases of a run folder (newest checkpoint, raw or averaged weights) or of a Hugging
Face folder; moments, moving average and counters start anew, as do the schedules. The model may differ from the parent's only
in what moves no weight: RoPE scaling and base, the length limit, the initial spread. `lineage.json` records every ancestor
and every changed field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from rorqual.checkpoint import hf, resume
from rorqual.config import ModelConfig
from rorqual.errors import CheckpointError, ConfigError, RunError
from rorqual.model.transformer import CausalLM
from rorqual.train.hyperparams import RunConfig, diff
from rorqual.train.records import changes
from rorqual.train.rundir import CONTENTS, read_config

Weights = Literal["raw", "ema"]
MAY_CHANGE = ("rope_scaling", "rope_theta", "max_position_embeddings", "initializer_range", "quantization_config", "model_type")


@dataclass(frozen=True)
class Parent:
    """Where a phase starts. `config` is the parent's RunConfig, None for a Hugging Face folder."""

    path: Path
    kind: Literal["run", "huggingface"]
    model: ModelConfig
    weights_kind: Weights
    load: Callable[[], dict[str, Tensor]]
    config: RunConfig | None = None
    step: int | None = None
    tokens: int | None = None
    ancestors: list[dict[str, Any]] = field(default_factory=list)
    tokenizer: str | None = None


def is_run(path: Path) -> bool:
    """Whether a folder is a run's, rather than a model's."""
    return (path / "lineage.json").is_file()


def open_parent(path: str | Path, weights: Weights = "raw") -> Parent:
    """Looks at a run or Hugging Face folder without reading weights. Raises where it is neither, or has nothing saved."""
    path = Path(path)
    if not is_run(path):
        if weights == "ema":
            raise ConfigError(f"{path} is not a run folder, so it has no moving average; leave out --init-weights ema")
        return Parent(path, "huggingface", ModelConfig.from_file(path), weights, lambda: _from_hf(path))
    config, newest = read_config(path), resume.latest(path / "checkpoints")
    if newest is None:
        raise CheckpointError(f"{path} has no whole checkpoint yet; let the run reach its first one, or start from another folder")
    if weights == "ema" and config.train.ema_decay is None:
        raise ConfigError(f"{path} kept no moving average (train.ema_decay is none); leave out --init-weights ema")
    state, story = resume.read_state(newest), _read_lineage(path / "lineage.json")
    return Parent(
        path, "run", config.model, weights, lambda: _from_run(config.model, newest, weights), config, int(state["step"]), int(state["tokens"]),
        list(story.get("parents", [])), story.get("tokenizer"),
    )  # fmt: skip


def check_fits(parent: Parent, run: RunConfig, tokenizer: str | None = None) -> None:
    """Refuses, before any work, a phase whose model or vocabulary is not the parent's."""
    wrong = {name: pair for name, pair in changes(parent.model, run.model).items() if name.partition(".")[0] not in MAY_CHANGE}
    if wrong:
        listed = "; ".join(f"model.{name} is {old!r} in the parent, {new!r} here" for name, (old, new) in wrong.items())
        raise ConfigError(
            f"cannot start from {parent.path}: {listed}. A new phase may change {', '.join(MAY_CHANGE[:3])}, and everything outside the model"
        )
    if parent.tokenizer is not None and tokenizer is not None and parent.tokenizer != tokenizer:
        raise ConfigError(
            f"cannot start from {parent.path}: it was trained with tokenizer {parent.tokenizer}, the data was built with {tokenizer}, so ids mean other text; build the data with the parent's tokenizer"
        )


def check_apart(parent: Parent, out: Path) -> None:
    """Refuses to replace a run that the new phase starts from: its weights are read after the folder was emptied."""
    start, places = parent.path.resolve(), [out.resolve() / name for name in CONTENTS]
    if start == out.resolve() or any(start.is_relative_to(place) for place in places):
        raise ConfigError(f"cannot start from {parent.path} and replace it: --overwrite would delete it first; choose another --out")


def lineage(run: RunConfig, parent: Parent | None, data: Any) -> dict[str, Any]:
    """What lineage.json records: this phase's data, and its ancestors with what changed from each to the next, newest last."""
    record: dict[str, Any] = {"data_fingerprint": data.fingerprint, "tokenizer": data.tokenizer.fingerprint, "parents": []}
    if parent is not None:
        changed = changes(parent.model, run.model, "model") if parent.config is None else diff(parent.config, run)
        entry = {
            "path": str(parent.path.resolve()), "kind": parent.kind, "weights": parent.weights_kind, "step": parent.step, "tokens": parent.tokens,
            "changes": {name: list(pair) for name, pair in changed.items()},
        }  # fmt: skip
        record["parents"] = [*parent.ancestors, entry]
    return record


def recorded_parent(file: Path) -> Parent | None:
    """The parent of a run that was stopped before its first checkpoint, as its lineage.json names it."""
    parents = _read_lineage(file).get("parents") or []
    return open_parent(parents[-1]["path"], parents[-1]["weights"]) if parents else None


def derive(path: str | Path, recipe: RunConfig | None, settings: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration of a new phase: `recipe`, or the parent run's own, with dotted `settings`; a Hugging Face parent lends its model."""
    parent = open_parent(path)
    if recipe is None:
        if parent.config is None:
            raise ConfigError(f"{path} is a Hugging Face folder, which says nothing about training; name a recipe or a config.json too")
        recipe = parent.config
    elif parent.kind == "huggingface":
        recipe = recipe.with_({"model": parent.model})
    return recipe.with_(settings or {})


def _read_lineage(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {file}: {error}; restore it") from error
    if not isinstance(record, dict):
        raise RunError(f"{file} is not an object; restore it")
    return record


def _from_hf(path: Path) -> dict[str, Tensor]:
    model, report = hf.load(path)
    if report.missing:
        raise CheckpointError(
            f"{path} lacks {', '.join(report.missing[:5])} ({len(report.missing)} tensors); a phase starts from whole weights only"
        )
    return {name: t.detach() for name, t in model.state_dict().items()}


def _from_run(config: ModelConfig, checkpoint: Path, weights: Weights) -> dict[str, Tensor]:
    model = CausalLM(config)
    resume.load(checkpoint, resume.logical_tensors(model), partial=True)
    if weights == "ema":
        average = {f"ema.{name}": p.detach() for name, p in model.named_parameters()}
        resume.load(checkpoint, resume.split_experts(average), partial=True)
    return {name: t.detach() for name, t in model.state_dict().items()}
