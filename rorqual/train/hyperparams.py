"""Everything that decides a run, as frozen dataclasses: schedules, optimiser, training, the whole run. No torch.

Report section 4.2 and, for what the report leaves open, choices of ours that are marked as such. A RunConfig goes to JSON and
back exactly; `diff` names the fields in which two runs differ; `from_command_line` makes dotted overrides out of a recipe.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from rorqual.config import ModelConfig
from rorqual.data.config import BuildConfig, DataConfig
from rorqual.errors import ConfigError
from rorqual.train.records import changes, from_plain, number, one_of, override, to_plain, whole
from rorqual.train.schedules import BatchSchedule, GammaSchedule, LambdaSchedule, LearningRateSchedule

__all__ = [
    "BatchSchedule", "GammaSchedule", "LambdaSchedule", "LearningRateSchedule", "OptimizerConfig", "RunConfig", "TrainConfig", "diff", "from_command_line",
]  # fmt: skip

# ---------------------------------------------------------------------- optimiser and training


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (report section 4.2). `eps` and what is left undecayed are ours: the report does not give them."""

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    """Largest global gradient norm."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """Storage of both moments; the report keeps them in BF16 (section 3.3.3)."""
    decay_norms: bool = False
    """Whether norm weights and other 1-D parameters decay too."""

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optimizer.{name} ({getattr(self, name)}) must be at least 0 and below 1; the report uses 0.9 and 0.95")
        number("optimizer.eps", self.eps, 0, above=True)
        number("optimizer.weight_decay", self.weight_decay, 0)
        number("optimizer.clip_norm", self.clip_norm, 0, above=True)
        one_of("optimizer.moments", self.moments, ("fp32", "bf16"))

    def decays(self, ndim: int) -> bool:
        """Whether a parameter of `ndim` dimensions gets weight decay: matrices and expert stacks do, norms and other 1-D ones do not (ours)."""
        return self.decay_norms or ndim > 1


@dataclass(frozen=True)
class TrainConfig:
    """How long, in what batches, by what schedules, and what is saved and measured on the way."""

    total_tokens: int
    """Length of the run. Changed on the command line, it stretches the token boundaries of every schedule that is not given there."""
    sequence_length: int
    micro_batch_sequences: int
    """Sequences per forward and backward; the last micro-batch of a step may be smaller."""
    learning_rate: LearningRateSchedule
    batch: BatchSchedule
    bias_update_speed: GammaSchedule
    mtp_loss_weight: LambdaSchedule
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    aux_loss_alpha: float = 1e-4
    """Weight of the sequence-wise balance loss; the report's 1e-4, not the 1e-3 of the released config.json."""
    ema_decay: float | None = None
    """Decay per step of the parameters' moving average, kept off the device (report section 3.2.3; its value is not published)."""
    recompute: tuple[Literal["norms", "mla_up", "swiglu"], ...] = ()
    """What the backward pass computes again instead of storing (report section 3.2.3)."""
    compile: bool = False
    checkpoint_every_steps: int = 1000
    keep_checkpoints: int = 2
    validate_every_steps: int = 1000
    validation_source: str | None = None
    """Source whose validation text is measured; none for the one with the largest weight."""
    validation_tokens: int | None = None
    """Tokens of the validation set used during training; the final validation always takes all of them."""
    log_every_steps: int = 1
    sample_every_steps: int = 0
    """Steps between generated samples; 0 for samples at the end only."""
    sample_prompts: tuple[str, ...] = ()
    sample_tokens: int = 64
    max_skipped_in_a_row: int = 10
    """Consecutive steps with a non-finite loss or gradient norm that are skipped before the run stops."""
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int | None = None
    """CPU threads; none for all cores of the machine."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("total_tokens", "sequence_length", "micro_batch_sequences", "checkpoint_every_steps", "keep_checkpoints", "validate_every_steps",
                     "log_every_steps", "sample_tokens", "max_skipped_in_a_row"):  # fmt: skip
            whole(f"train.{name}", getattr(self, name), 1)
        for name in ("sample_every_steps", "seed"):
            whole(f"train.{name}", getattr(self, name), 0)
        for name in ("validation_tokens", "threads"):
            if getattr(self, name) is not None:
                whole(f"train.{name}", getattr(self, name), 1)
        number("train.aux_loss_alpha", self.aux_loss_alpha, 0)
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError(f"train.ema_decay ({self.ema_decay}) must be at least 0 and below 1, e.g. 0.999, or none for no average")
        for part in self.recompute:
            one_of("train.recompute", part, ("norms", "mla_up", "swiglu"))
        one_of("train.dtype", self.dtype, ("auto", "float32", "bfloat16"))
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", self.device):
            raise ConfigError(f"train.device ({self.device!r}) is not known; use 'auto', 'cpu', 'cuda', 'cuda:0' or 'mps'")

    def stretched(self, total_tokens: int, keep: Sequence[str] = ()) -> TrainConfig:
        """The same run over another number of tokens: token boundaries move in proportion, except in the schedules named in `keep`."""
        changed: dict[str, Any] = {}
        for name in ("learning_rate", "batch", "bias_update_speed", "mtp_loss_weight"):
            schedule = getattr(self, name)
            bounds = [f.name for f in fields(schedule) if f.name.endswith("_tokens")]
            if name not in keep:
                changed[name] = replace(
                    schedule, **{bound: getattr(schedule, bound) * total_tokens // self.total_tokens for bound in bounds}
                )
        return replace(self, total_tokens=total_tokens, **changed)

    def num_steps(self) -> int:
        """Optimiser steps of the run: it ends with the first step after which `total_tokens` have been seen."""
        ramp = min(self.batch.ramp_tokens, self.total_tokens)
        step = tokens = 0
        while tokens < ramp:
            tokens += self.batch.value(tokens) * self.sequence_length
            step += 1
        return step + max(0, -(-(self.total_tokens - tokens) // (self.batch.end * self.sequence_length)))


# ---------------------------------------------------------------------- the whole run


@dataclass(frozen=True)
class RunConfig:
    """A complete run: what a recipe returns, what `config.json` of a run folder holds."""

    name: str
    model: ModelConfig
    data: DataConfig
    build: BuildConfig
    train: TrainConfig

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            raise ConfigError(f"name ({self.name!r}) must be a plain folder name of at most 100 letters, digits, '.', '_' and '-'")
        self.model.settled()
        length, depth = self.train.sequence_length, self.model.num_nextn_predict_layers
        if length > self.model.max_position_embeddings:
            raise ConfigError(
                f"train.sequence_length ({length}) must be at most model.max_position_embeddings ({self.model.max_position_embeddings}); shorten the one or raise the other"
            )
        if length <= depth:
            raise ConfigError(
                f"train.sequence_length ({length}) must be above model.num_nextn_predict_layers ({depth}): MTP module {depth} would have no target"
            )
        source = self.train.validation_source
        if source is not None and self.data.sources and not self.data.sources.get(source):
            known = ", ".join(sorted(name for name, weight in self.data.sources.items() if weight))
            raise ConfigError(f"train.validation_source ({source!r}) is not a source of the data with a weight; use one of {known}")
        if self.build.tokenizer is None and self.build.vocab_size > self.model.vocab_size:
            raise ConfigError(
                f"build.vocab_size ({self.build.vocab_size}) must be at most model.vocab_size ({self.model.vocab_size}): every token needs a row of the embedding"
            )

    def to_json(self) -> str:
        """The configuration as JSON text that `from_json` turns into an equal object."""
        return json.dumps(to_plain(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """Reads what `to_json` wrote; ConfigError names an unknown, missing or mistyped field."""
        try:
            raw = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ConfigError(f"the run configuration is not JSON: {error}") from None
        return from_plain(cls, raw)

    def with_(self, settings: Mapping[str, Any]) -> RunConfig:
        """A copy with dotted fields replaced, e.g. `{"train.total_tokens": 10**6, "model.rope_scaling": None}`, validated anew."""
        return override(self, settings)

    def runner(self) -> Callable[..., Any]:
        """The function that carries the run out, `train(run, out, ...)`; imports torch only now."""
        from rorqual.train.trainer import train

        return train


def diff(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted name of every field that differs, with (old value, new value): what an exact resume refuses by name."""
    return changes(old, new)


def from_command_line(recipe: RunConfig, argv: Sequence[str], prog: str | None = None) -> RunConfig:
    """The recipe with dotted overrides such as `--train.total-tokens 1000000 --model.hidden-size 256`; `--help` lists every field.

    Another `train.total_tokens` stretches the schedules that the arguments leave alone. Fields that are off in the recipe
    (rope_scaling null) cannot be opened piecewise here; use `RunConfig.with_`.
    """
    import tyro

    run = tyro.cli(RunConfig, default=recipe, args=list(argv), prog=prog, config=(tyro.conf.AvoidSubcommands,))
    if run.train.total_tokens == recipe.train.total_tokens:
        return run
    given = [f.name for f in fields(TrainConfig) if getattr(run.train, f.name) != getattr(recipe.train, f.name)]
    as_before = replace(run.train, total_tokens=recipe.train.total_tokens)
    return replace(run, train=as_before.stretched(run.train.total_tokens, keep=given))
