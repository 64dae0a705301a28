"""One optimiser step on judged groups: the objective's gradient over micro-batches, and what is logged about it.

    old = old_logprobs(state, groups, config)            # only where a rollout feeds several steps
    figures = update(state, groups, config, learning_rate)

pi_old comes from the trainer's own forward pass, never from the engine: before the first update the ratio is 1 to the bit. Engine and
trainer are compared in every step (gap of log-probabilities, share of expert choices that differ).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rorqual.model import balance
from rorqual.model.transformer import CausalLM
from rorqual.posttrain import policy
from rorqual.posttrain.buffer import Group
from rorqual.posttrain.objectives import Denominators, kl_k3, policy_loss
from rorqual.posttrain.policy import Row
from rorqual.posttrain.presets import GRPOConfig
from rorqual.posttrain.rollout import Answer, sampling
from rorqual.train.optim import AdamW


@dataclass(frozen=True)
class Trainee:
    """What an update changes and what it looks at; `reference` is None where no KL term needs one."""

    model: CausalLM
    optimizer: AdamW
    reference: CausalLM | None = None
    vocab_limit: int | None = None


@dataclass
class Figures:
    """Sums over an optimiser step. `outcome`: "updated", "no signal" (nothing changed), "non-finite" or "interrupted"."""

    outcome: str = "updated"
    loss: float = 0.0
    policy: float = 0.0
    kl: float = 0.0
    kl_tokens: float = 0.0
    entropy: float = 0.0
    gap: float = 0.0
    gap_max: float = 0.0
    tokens: int = 0
    compared: int = 0
    clipped: int = 0
    terms: int = 0
    max_ratio: float = 1.0
    flips: int = 0
    routed: int = 0
    gradient_norm: float = 0.0
    answers: int = 0
    loads: Tensor | None = field(default=None, repr=False)

    def record(self) -> dict[str, Any]:
        """Means under their metric names."""
        per_token = max(1, self.tokens)
        return {
            "outcome": self.outcome, "loss": self.loss, "policy_loss": self.policy, "kl": self.kl_tokens / per_token, "grad_norm": self.gradient_norm,
            "entropy": self.entropy / per_token, "clip_fraction": self.clipped / max(1, self.terms), "max_ratio": self.max_ratio,
            "trained_answers": self.answers, "trained_tokens": self.tokens,
            "logprob_gap_mean": self.gap / self.compared if self.compared else None, "logprob_gap_max": self.gap_max if self.compared else None,
            "routing_flip_rate": self.flips / self.routed if self.routed else None,
            "max_vio": [] if self.loads is None else balance.max_violation(self.loads).tolist(),
        }  # fmt: skip


def prepare(trainee: Trainee, groups: Sequence[Group], config: GRPOConfig) -> list[Group]:
    """What fresh groups need before their first update: where filters were on, the sets that each token was drawn from."""
    params = sampling(config, 0, 1)
    if not params.filters:
        return list(groups)
    out = []
    for group in groups:
        rows = [answer.row for answer in group.answers]
        sets = policy.kept_sets(trainee.model, rows, params, vocab_limit=trainee.vocab_limit, replay=_replays(config))
        out.append(replace(group, answers=[replace(answer, kept=kept) for answer, kept in zip(group.answers, sets, strict=True)]))
    return out


def old_logprobs(trainee: Trainee, groups: Sequence[Group], config: GRPOConfig) -> list[Group]:
    """The groups of one optimiser step with log pi_old, in the micro-batches that the step will use; with r2, also the experts of this pass."""
    answers = [answer for group in groups for answer in group.answers]
    old: list[Tensor] = [torch.empty(0)] * len(answers)
    routes: list[Tensor | None] = [answer.routes for answer in answers]
    for numbers in policy.micro_batches([_length(answer) for answer in answers], config.micro_batch_tokens):
        rows = [answers[number].row for number in numbers]
        with torch.no_grad():
            scored = _score(trainee.model, rows, config, trainee.vocab_limit, record=config.routing_replay == "r2")
        for number, part in zip(numbers, scored.logp.split([len(row.answer) for row in rows]), strict=True):
            old[number] = part.cpu()
        for number, part in zip(numbers, scored.routes, strict=False):
            routes[number] = part
    out, first = [], 0
    for group in groups:
        part = slice(first, first + len(group.answers))
        answered = [replace(answer, routes=route) for answer, route in zip(group.answers, routes[part], strict=True)]
        out.append(replace(group, answers=answered, old=old[part]))
        first += len(group.answers)
    return out


def _replays(config: GRPOConfig) -> bool:
    return config.routing_replay == "r3"


def _length(answer: Answer) -> int:
    return len(answer.prompt) + len(answer.ids) - 1


def _score(
    model: CausalLM, rows: list[Row], config: GRPOConfig, vocab_limit: int | None, *, replay: bool | None = None, record: bool = False
) -> policy.Scored:
    use = _replays(config) if replay is None else replay
    return policy.score(model, rows, temperature=config.temperature, vocab_limit=vocab_limit, replay=use, record=record)


def update(
    trainee: Trainee, groups: Sequence[Group], config: GRPOConfig, learning_rate: float, interrupted: Callable[[], bool] = lambda: False
) -> Figures:
    """One AdamW update; parameters stay to the bit where no answer has a gradient or one is not finite."""
    objective, optimizer = config.objective, trainee.optimizer
    answers = [answer for group in groups for answer in group.answers]
    old: list[Tensor | None] = [one for group in groups for one in (group.old or [None] * len(group.answers))]  # type: ignore[list-item]
    advantage = torch.cat([group.advantages for group in groups]) if groups else torch.zeros(0)
    counted = _counted(groups, objective.drop_cut)
    lengths = [len(answer.ids) for answer in answers]
    total = Denominators(int(counted.sum()), sum(n for n, use in zip(lengths, counted.tolist(), strict=True) if use), config.max_new_tokens)
    useful = [number for number in range(len(answers)) if counted[number] and (objective.kl_beta > 0 or advantage[number] != 0)]
    figures = Figures()
    optimizer.zero_grad()
    if not useful or not bool((advantage[useful] != 0).any()):
        figures.outcome = "no signal"
        return figures
    every = list(policy.micro_batches([_length(answers[number]) for number in useful], config.micro_batch_tokens))
    if any(one is not None for one in old):  # the passes for pi_old went over all answers: the same cut gives the same bits
        useful_set = set(useful)
        whole = policy.micro_batches([_length(answer) for answer in answers], config.micro_batch_tokens)
        batches = [part for part in whole if useful_set & set(part)]
    else:
        batches = [[useful[place] for place in part] for part in every]
    device = trainee.model.head_weight.device
    for numbers in batches:
        if interrupted():
            optimizer.zero_grad()
            figures.outcome = "interrupted"
            return figures
        rows = [answers[number].row for number in numbers]
        scored = _score(trainee.model, rows, config, trainee.vocab_limit, replay=config.routing_replay != "off")
        stored = [one for number in numbers if (one := old[number]) is not None]
        before = torch.cat(stored).to(device) if len(stored) == len(numbers) else scored.logp.detach()
        engine = _engine(answers, numbers, device)
        reference = None
        if trainee.reference is not None and objective.kl_beta > 0:
            with torch.no_grad():
                reference = _score(trainee.reference, rows, config, trainee.vocab_limit, replay=False).logp
            figures.kl_tokens += float(kl_k3(scored.logp.detach(), reference).sum())
        # the engine's values are of the model's own distribution, so the correction compares like with like
        shift = None if engine is None else before - (scored.plain - engine) if objective.correction != "none" else None
        terms = policy_loss(
            objective, logp=scored.logp, old=before, answer=scored.answer, advantage=advantage[numbers].to(device),
            counted=counted[numbers].to(device), total=total, reference=reference, sampler=shift,
        )  # fmt: skip
        terms.loss.backward()
        optimizer.accumulate()
        _add(figures, terms, scored, engine)
        figures.answers += len(numbers)
    figures.gradient_norm = optimizer.gradient_norm()
    if not (math.isfinite(figures.loss) and math.isfinite(figures.gradient_norm)):
        figures.outcome = "non-finite"
        optimizer.zero_grad()
        return figures
    optimizer.step(learning_rate, figures.gradient_norm)
    optimizer.zero_grad()
    if config.bias_update_speed > 0 and figures.loads is not None:
        for (_, bias), load in zip(trainee.model.router_biases(), figures.loads, strict=False):
            balance.update_bias(bias, load, config.bias_update_speed)
    return figures


def _counted(groups: Sequence[Group], drop_cut: bool) -> Tensor:
    """Which answers take part: judged, in a group that was not left out, and not cut where cut ones are dropped."""
    return torch.tensor(
        [
            not group.dropped and not math.isnan(reward) and not (drop_cut and answer.cut)
            for group in groups
            for answer, reward in zip(group.answers, group.rewards.tolist(), strict=True)
        ],
        dtype=torch.bool,
    )


def _engine(answers: Sequence[Answer], numbers: Sequence[int], device: torch.device) -> Tensor | None:
    parts = [answers[number].logprobs for number in numbers]
    return None if any(part is None for part in parts) else torch.cat([part for part in parts if part is not None]).to(device)


def _add(figures: Figures, terms: Any, scored: policy.Scored, engine: Tensor | None) -> None:
    figures.loss += float(terms.loss.detach())
    figures.policy, figures.kl = figures.policy + terms.policy, figures.kl + terms.kl
    figures.clipped, figures.terms = figures.clipped + terms.clipped, figures.terms + terms.terms
    figures.max_ratio = max(figures.max_ratio, terms.max_ratio)
    figures.tokens += len(scored.logp)
    figures.entropy += float(scored.entropy.sum())
    figures.flips, figures.routed = figures.flips + scored.flips, figures.routed + scored.routed
    if engine is not None:
        gap = (scored.plain - engine).abs()
        figures.gap, figures.compared = figures.gap + float(gap.sum()), figures.compared + len(gap)
        figures.gap_max = max(figures.gap_max, float(gap.max()))
    if scored.loads is not None:
        figures.loads = scored.loads if figures.loads is None else figures.loads + scored.loads
