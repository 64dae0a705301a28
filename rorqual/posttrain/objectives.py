"""The pieces of the policy objective, each a function of its own (report section 5.2.2, equation 26; DeepSeekMath equations 19-21).

    per token (DeepSeekMath)   J = mean over answers of 1/|o| sum_t { min(rho_t A, clip(rho_t, 1 - low, 1 + high) A) - beta k3_t }
    per sequence (V3)          J = mean over answers of       { min(rho A, clip(rho, 1 - low, 1 + high) A)       - beta k3   }

with rho_t = pi(o_t) / pi_old(o_t), rho their product over the answer, k3 = r - log r - 1 and r = pi_ref / pi. GSPO takes the geometric mean
instead of the product; DAPO and Dr. GRPO weigh tokens otherwise. Tokens lie flat, `answer[i]` is the answer of token i. Denominators
are those of the whole optimiser step and are handed in, so that neither loss nor gradient depends on micro-batches (field case F34).
Shape letters: n tokens, a answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rorqual.errors import ConfigError
from rorqual.posttrain.presets import Aggregation, Correction, Objective

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are held within this bound: exp(20) is far outside any clip, and FP32 overflows at 88."""


# ---------------------------------------------------------------------- ratio, clip, KL


def log_ratio(logp: Float[Tensor, " n"], old: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """log pi - log pi_old per token, within LOG_RATIO_LIMIT."""
    return (logp - old).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def token_ratio(logp: Float[Tensor, " n"], old: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """rho_t; exactly 1 where both log-probabilities have the same bits."""
    return log_ratio(logp, old).exp()


def per_answer(values: Float[Tensor, " n"], answer: Int[Tensor, " n"], answers: int) -> Float[Tensor, " a"]:
    """Sum of the values of each answer's tokens."""
    return values.new_zeros(answers).index_add(0, answer, values)


def sequence_log_ratio(
    logp: Float[Tensor, " n"], old: Float[Tensor, " n"], answer: Int[Tensor, " n"], answers: int, mean: bool
) -> Float[Tensor, " a"]:
    """Sum over the answer of log pi - log pi_old, or with `mean` the same divided by |o| (GSPO)."""
    total = per_answer(logp - old, answer, answers)
    if mean:
        total = total / torch.bincount(answer, minlength=answers).clamp_min(1).to(total.dtype)
    return total.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def clipped(
    ratio: Float[Tensor, " n"], advantage: Float[Tensor, " n"], low: float, high: float, dual: float | None = None
) -> Float[Tensor, " n"]:
    """min(rho A, clip(rho, 1 - low, 1 + high) A); with `dual`, at least dual * A where A < 0."""
    value = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    if dual is not None:
        value = torch.where(advantage < 0, torch.maximum(value, dual * advantage), value)
    return value


def was_clipped(ratio: Float[Tensor, " n"], advantage: Float[Tensor, " n"], low: float, high: float) -> Bool[Tensor, " n"]:
    """Where the clipped side was the smaller one, so that no gradient flows."""
    return ((ratio > 1 + high) & (advantage > 0)) | ((ratio < 1 - low) & (advantage < 0))


def kl_k3(logp: Float[Tensor, " n"], reference: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """r - log r - 1 with log r = log pi_ref - log pi: never negative, unbiased under samples of pi (DeepSeekMath equation 4)."""
    log_r = (reference - logp).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return log_r.exp() - log_r - 1


# ---------------------------------------------------------------------- which tokens weigh how much


@dataclass(frozen=True)
class Denominators:
    """Counts of the whole optimiser step: answers and tokens that take part, and the constant length of Dr. GRPO."""

    answers: int
    tokens: int
    max_new_tokens: int


def token_weights(
    aggregation: Aggregation, answer: Int[Tensor, " n"], lengths: Int[Tensor, " a"], total: Denominators
) -> Float[Tensor, " n"]:
    """Weight of each token's term; they make a mean over answers, a mean over tokens, or a sum with a constant divisor.

    `lengths` are the numbers of counted tokens of each answer. With nothing that takes part every weight is finite.
    """
    if aggregation == "answer-mean":
        return 1.0 / (lengths.clamp_min(1).float()[answer] * max(1, total.answers))
    if aggregation == "token-mean":
        return torch.full(answer.shape, 1.0 / max(1, total.tokens), device=answer.device)
    return torch.full(answer.shape, 1.0 / (max(1, total.answers) * total.max_new_tokens), device=answer.device)


# ---------------------------------------------------------------------- sampler and trainer disagree


def correction_weights(
    kind: Correction, trainer: Float[Tensor, " n"], sampler: Float[Tensor, " n"], answer: Int[Tensor, " n"], answers: int, low: float, high: float
) -> Float[Tensor, " n"]:  # fmt: skip
    """Weight of each token for having been sampled by an engine whose log-probabilities differ; without gradient.

    tis: min(rho, high). icepop: rho where low <= rho <= high, else 0. sequence-mask: 1, or 0 for answers whose product leaves [low, high].
    """
    if kind == "none":
        return torch.ones_like(trainer)
    rho = (trainer - sampler).detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    if kind == "tis":
        return rho.clamp_max(high)
    if kind == "icepop":
        return torch.where((rho >= low) & (rho <= high), rho, torch.zeros_like(rho))
    whole = sequence_log_ratio(trainer.detach(), sampler, answer, answers, mean=False).exp()
    return ((whole >= low) & (whole <= high)).to(rho.dtype)[answer]


# ---------------------------------------------------------------------- all together


@dataclass(frozen=True)
class Terms:
    """`loss` is what backward takes; the rest are detached sums over this micro-batch, to be added up over the step."""

    loss: Float[Tensor, ""]
    policy: float
    kl: float
    clipped: int
    terms: int
    max_ratio: float


def policy_loss(
    objective: Objective, *, logp: Float[Tensor, " n"], old: Float[Tensor, " n"], answer: Int[Tensor, " n"], advantage: Float[Tensor, " a"],
    counted: Bool[Tensor, " a"], total: Denominators, reference: Float[Tensor, " n"] | None = None, sampler: Float[Tensor, " n"] | None = None,
) -> Terms:  # fmt: skip
    """One micro-batch's share of the loss; shares add up to the whole, whatever the cut.

    old: log pi_old per token, without gradient. counted: which answers take part. reference: needed where kl_beta > 0. sampler: the
    engine's log-probabilities, needed by a correction. Every answer is whole within the micro-batch.
    """
    answers = len(advantage)
    use = counted.to(logp.dtype)
    lengths = torch.bincount(answer, minlength=answers)
    correction = torch.ones_like(old)
    if objective.correction != "none":
        if sampler is None:
            raise ConfigError(
                f"objective.correction ({objective.correction!r}) needs the sampler's log-probabilities, and this rollout has none; use 'none'"
            )
        correction = correction_weights(
            objective.correction, old, sampler, answer, answers, objective.correction_low, objective.correction_high
        )
    if objective.kl_beta > 0 and reference is None:
        raise ConfigError(f"objective.kl_beta ({objective.kl_beta}) needs log-probabilities of a reference model")
    if objective.ratio == "token":
        ratio, gain, place = token_ratio(logp, old), advantage[answer], answer
        weight = token_weights(objective.aggregation, answer, lengths, total) * use[answer]
    else:
        ratio = sequence_log_ratio(logp, old, answer, answers, objective.ratio == "sequence-mean").exp()
        gain, place = advantage, torch.arange(answers, device=answer.device)
        weight = use / max(1, total.answers)
        correction = per_answer(correction, answer, answers) / lengths.clamp_min(1)
    policy = -(weight * correction * clipped(ratio, gain, objective.clip_low, objective.clip_high, objective.clip_dual)).sum()
    kl = torch.zeros_like(policy)
    if objective.kl_beta > 0:
        assert reference is not None
        if objective.ratio == "sequence":
            kl = (weight * kl_k3(per_answer(logp, answer, answers), per_answer(reference, answer, answers))).sum()
        else:
            token_weight = weight if objective.ratio == "token" else weight[answer] / lengths.clamp_min(1)[answer]
            kl = (token_weight * kl_k3(logp, reference)).sum()
    with torch.no_grad():
        part = use[place] > 0
        lost = int((was_clipped(ratio, gain, objective.clip_low, objective.clip_high) & part).sum())
        most = float(ratio[part].max()) if bool(part.any()) else 1.0
    return Terms(policy + objective.kl_beta * kl, float(policy.detach()), float(kl.detach()), lost, int(part.sum()), most)
