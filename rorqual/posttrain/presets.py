"""Settings of reinforcement learning with groups, and the published ones by name, each printing its formula. No torch.

`grpo-deepseekmath`, `grpo-v3`, `r1-zero`, `r1`, `dapo`, `dr-grpo`, `gspo` (report section 5.2.2; DeepSeekMath sections 4.1-4.2; DeepSeek-R1
sections 2.2 and 2.3; the papers of DAPO, Dr. GRPO and GSPO). A value that its paper does not give is ours, and the printed formula says
so. Batch sizes are the papers' and made for clusters: give `--prompts`, `--group` and the like for smaller machines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rorqual.errors import ConfigError
from rorqual.train.hyperparams import OptimizerConfig
from rorqual.train.records import changes, from_plain, number, one_of, to_plain, whole

RatioLevel = Literal["token", "sequence", "sequence-mean"]
Aggregation = Literal["answer-mean", "token-mean", "constant"]
Correction = Literal["none", "tis", "icepop", "sequence-mask"]


@dataclass(frozen=True)
class Objective:
    """What is maximised; see posttrain.objectives for each piece."""

    scale: Literal["std", "none"] = "std"
    """What centred rewards are divided by."""
    ratio: RatioLevel = "token"
    """pi / pi_old per token, "sequence" (product over the answer) or "sequence-mean" (geometric mean)."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    clip_dual: float | None = None
    """Bounds the term of answers with A < 0 by this times A; null: no bound, as DeepSeek publishes it."""
    kl_beta: float = 0.0
    aggregation: Aggregation = "answer-mean"
    """Answers weigh alike, tokens weigh alike, or each token weighs 1 / max_new_tokens whatever the length."""
    correction: Correction = "none"
    """Weight for the difference between the engine's and the trainer's log-probabilities."""
    correction_low: float = 0.5
    correction_high: float = 2.0
    drop_cut: bool = False
    """Whether answers that were cut at the length limit are left out of the objective."""

    def __post_init__(self) -> None:
        one_of("objective.scale", self.scale, ("std", "none"))
        one_of("objective.ratio", self.ratio, ("token", "sequence", "sequence-mean"))
        one_of("objective.aggregation", self.aggregation, ("answer-mean", "token-mean", "constant"))
        one_of("objective.correction", self.correction, ("none", "tis", "icepop", "sequence-mask"))
        for name in ("clip_low", "clip_high", "kl_beta", "correction_low", "correction_high"):
            number(f"objective.{name}", getattr(self, name), 0)
        if self.clip_dual is not None:
            number("objective.clip_dual", self.clip_dual, 1, above=True)
        if self.ratio != "token" and self.aggregation != "answer-mean":
            raise ConfigError(
                f"objective.aggregation ({self.aggregation!r}) needs objective.ratio 'token': a sequence ratio has one term per answer; use 'answer-mean'"
            )


@dataclass(frozen=True)
class GRPOConfig:
    """A run of GRPO. One rollout of `prompts` questions with `group` answers each feeds `minibatches` optimiser steps."""

    objective: Objective = field(default_factory=Objective)
    steps: int = 100
    """Optimiser steps."""
    prompts: int = 8
    group: int = 8
    minibatches: int = 1
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    learning_rate: float = 1e-6
    warmup_steps: int = 0
    reference_refresh: int = 0
    """Steps between two copies of the policy into the reference model; 0: it stays the start."""
    groups_without_signal: Literal["keep", "drop", "refill"] = "keep"
    """Groups whose rewards are all equal: kept with advantage 0, left out of all counts, or replaced by new questions."""
    refill_attempts: int = 4
    routing_replay: Literal["r3", "r2", "off"] = "r3"
    """Experts in training: those the engine chose, those of the pass for pi_old, or chosen anew in every pass."""
    freeze_router: bool = False
    bias_update_speed: float = 0.0
    """Speed of the router biases in training; 0 keeps them as they are."""
    rewards: Mapping[str, float] = field(default_factory=lambda: {"accuracy": 1.0})
    """Weight of each reward component."""
    reward_seconds: float = 10.0
    """Limit for judging one answer by one component; later it counts as not judged."""
    target_language: str = "en"
    max_penalty_length: int = 0
    """Tokens before max_new_tokens over which the `length` component falls from 0 to -1 (DAPO's soft punishment)."""
    style: Literal["v3", "r1", "v3.1"] = "v3"
    thinking: bool = False
    system: str = ""
    stop: tuple[str, ...] = ()
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=0.0))
    micro_batch_tokens: int = 8192
    seed: int = 0
    checkpoint_every_steps: int = 50
    keep_checkpoints: int = 2
    max_rollouts_without_signal: int = 8
    """Rollouts in a row without one group whose rewards differ, after which a run stops with an error."""
    max_skipped_in_a_row: int = 10
    log_answers: bool = True
    """Whether answers.jsonl keeps the texts of answers, or their figures alone."""

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "prompts",
            "minibatches",
            "max_new_tokens",
            "refill_attempts",
            "micro_batch_tokens",
            "checkpoint_every_steps",
            "keep_checkpoints",
            "max_rollouts_without_signal",
            "max_skipped_in_a_row",
        ):
            whole(name, getattr(self, name), 1)
        whole("group", self.group, 2)
        for name in ("top_k", "warmup_steps", "reference_refresh", "max_penalty_length", "seed"):
            whole(name, getattr(self, name), 0)
        number("temperature", self.temperature, 0, above=True)
        number("learning_rate", self.learning_rate, 0)
        number("bias_update_speed", self.bias_update_speed, 0)
        number("reward_seconds", self.reward_seconds, 0, above=True)
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p ({self.top_p}) must be above 0 and at most 1 (off)")
        if self.prompts % self.minibatches:
            raise ConfigError(
                f"prompts ({self.prompts}) must be a multiple of minibatches ({self.minibatches}), so that every step has whole groups alike"
            )
        one_of("groups_without_signal", self.groups_without_signal, ("keep", "drop", "refill"))
        one_of("routing_replay", self.routing_replay, ("r3", "r2", "off"))
        one_of("style", self.style, ("v3", "r1", "v3.1"))
        if "length" in self.rewards and self.max_penalty_length >= self.max_new_tokens:
            raise ConfigError(
                f"max_penalty_length ({self.max_penalty_length}) must be below max_new_tokens ({self.max_new_tokens}): the reward `length` would punish "
                "every answer; lower it (--set max_penalty_length=N), allow longer answers, or leave `length` out of --reward"
            )
        if not self.rewards:
            raise ConfigError("rewards is empty; give at least one component with its weight, e.g. accuracy=1")
        for name, weight in self.rewards.items():
            number(f"rewards.{name}", weight, float("-inf"))

    def to_json(self) -> str:
        """JSON text that `from_json` turns into an equal object."""
        return json.dumps(to_plain(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> GRPOConfig:
        """Reads what `to_json` wrote; ConfigError names an unknown, missing or mistyped field."""
        try:
            return from_plain(cls, json.loads(text))
        except json.JSONDecodeError as error:
            raise ConfigError(f"the GRPO configuration is not JSON: {error}") from None

    def changes(self, other: GRPOConfig) -> dict[str, tuple[Any, Any]]:
        """Dotted name of every field that differs: what an exact resume refuses by name."""
        return changes(self, other)


@dataclass(frozen=True)
class Preset:
    """Published settings. `ours` names the fields that the paper does not give."""

    name: str
    source: str
    config: GRPOConfig
    ours: tuple[str, ...]


_BASE = ("objective.clip_low", "objective.clip_high")
_R1 = GRPOConfig(
    objective=Objective(kl_beta=0.001), prompts=512, group=16, minibatches=16, learning_rate=3e-6, max_new_tokens=32_768, reference_refresh=400,
    steps=10_400, rewards={"accuracy": 1.0, "format": 1.0}, style="r1", thinking=True,
)  # fmt: skip


def presets() -> dict[str, Preset]:
    """Every preset by name."""
    known = (
        Preset("grpo-deepseekmath", "DeepSeekMath, section 4.2", GRPOConfig(
            objective=Objective(kl_beta=0.04), prompts=16, group=64, max_new_tokens=1024, learning_rate=1e-6,
        ), (*_BASE, "temperature", "steps")),
        Preset("grpo-v3", "DeepSeek-V3, section 5.2.2: the form of equation 26, whose constants are not published", GRPOConfig(
            objective=Objective(ratio="sequence", kl_beta=0.04), prompts=32, group=16,
        ), (*_BASE, "objective.kl_beta", "prompts", "group", "minibatches", "max_new_tokens", "temperature", "learning_rate", "steps")),
        Preset("r1-zero", "DeepSeek-R1, section 2.2", _R1, (*_BASE,)),
        Preset("r1", "DeepSeek-R1, section 2.3, first RL stage", replace(
            _R1, objective=replace(_R1.objective, clip_low=10.0, clip_high=10.0), rewards={"accuracy": 1.0, "format": 1.0, "language": 1.0},
        ), ("steps",)),
        Preset("dapo", "DAPO (arXiv 2503.14476), sections 3 and 4.1", GRPOConfig(
            objective=Objective(clip_high=0.28, aggregation="token-mean"), prompts=512, group=16, minibatches=16, max_new_tokens=20_480,
            learning_rate=1e-6, warmup_steps=320, groups_without_signal="refill", rewards={"accuracy": 1.0, "length": 1.0}, max_penalty_length=4096,
        ), ("refill_attempts", "steps")),
        Preset("dr-grpo", "Dr. GRPO (arXiv 2503.20783), section 3", GRPOConfig(
            objective=Objective(scale="none", aggregation="constant"), prompts=16, group=8, max_new_tokens=3000, learning_rate=1e-6,
        ), ("steps",)),
        Preset("gspo", "GSPO (arXiv 2507.18071), sections 4 and 5", GRPOConfig(
            objective=Objective(ratio="sequence-mean", clip_low=3e-4, clip_high=4e-4), prompts=32, group=16, minibatches=4, max_new_tokens=8192,
        ), ("prompts", "group", "max_new_tokens", "learning_rate", "temperature", "steps")),
    )  # fmt: skip
    return {one.name: one for one in known}


def preset(name: str) -> Preset:
    """The preset of that name; ConfigError lists the known ones."""
    known = presets()
    if name not in known:
        raise ConfigError(f"preset ({name!r}) is not known; use one of {', '.join(known)}")
    return known[name]


def formula(config: GRPOConfig, ours: tuple[str, ...] = ()) -> str:
    """The objective as text with its numbers; what is marked * is ours, because the paper does not give it."""
    o = config.objective
    star = {name for name in ours}

    def mark(name: str, value: object) -> str:
        return f"{value}*" if name in star else f"{value}"

    low, high = mark("objective.clip_low", f"{o.clip_low:g}"), mark("objective.clip_high", f"{o.clip_high:g}")
    rho = "rho_t" if o.ratio == "token" else "rho"
    term = f"min({rho} A, clip({rho}, 1 - {low}, 1 + {high}) A)"
    if o.clip_dual is not None:
        term = f"max({term}, {o.clip_dual:g} A) where A < 0, else {term}"
    if o.correction != "none":
        term = f"w {term}"
    penalty = f" - {mark('objective.kl_beta', f'{o.kl_beta:g}')} k3" if o.kl_beta else ""
    outer = {
        "answer-mean": "mean over answers of 1/|o| sum over t of" if o.ratio == "token" else "mean over answers of",
        "token-mean": "mean over all tokens of the step of",
        "constant": f"mean over answers of 1/{config.max_new_tokens} sum over t of",
    }[o.aggregation]
    rho_is = {
        "token": "rho_t = pi(o_t) / pi_old(o_t)",
        "sequence": "rho = pi(o) / pi_old(o), the product over the answer",
        "sequence-mean": "rho = (pi(o) / pi_old(o))^(1/|o|), the geometric mean over the answer",
    }[o.ratio]
    lines = [f"J = {outer} {{ {term}{penalty} }}", f"    {rho_is}"]
    lines.append("    A = (r - mean of the group) / std of the group" if o.scale == "std" else "    A = r - mean of the group")
    if o.kl_beta:
        what = "o" if o.ratio == "sequence" else "o_t"
        fresh = f"; pi_ref = pi every {config.reference_refresh} steps" if config.reference_refresh else ""
        lines.append(f"    k3 = x - log x - 1, x = pi_ref({what}) / pi({what}){fresh}")
    if o.correction != "none":
        lines.append(f"    w = {o.correction} of pi_old / pi_engine within [{o.correction_low:g}, {o.correction_high:g}]")
    if config.groups_without_signal != "keep":
        lines.append(
            {"drop": "    groups of equal rewards are left out", "refill": "    groups of equal rewards are replaced"}[
                config.groups_without_signal
            ]
        )
    if o.drop_cut:
        lines.append("    answers cut at the length limit are left out")
    settings = ", ".join(
        f"{name} {mark(name, getattr(config, name))}"
        for name in ("group", "prompts", "minibatches", "learning_rate", "temperature", "max_new_tokens", "steps")
    )
    lines += [f"    {settings}", f"    r = {' + '.join(f'{weight:g} {name}' for name, weight in config.rewards.items())}"]
    if star:
        lines.append("    * ours: the paper does not give it")
    return "\n".join(lines)
