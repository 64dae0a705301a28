"""Means with standard errors, intervals, pass@k, maj@k, perplexity and bits per byte. No torch.

standard error of a mean: s / sqrt(n), s with n - 1 (as lm-evaluation-harness); 0 for one item
Wilson interval of a share p of n:  (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
pass@k, unbiased (Chen et al. 2021):  1 - C(n - c, k) / C(n, k) for c right of n samples
bits per byte: total NLL / (ln 2 * bytes)                                 (report section 4.4.1)
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rorqual.errors import ConfigError

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error over n items."""

    value: float
    stderr: float
    n: int


def mean(values: Sequence[float]) -> Estimate:
    """Mean and standard error; NaN of nothing."""
    n = len(values)
    if n == 0:
        return Estimate(math.nan, math.nan, 0)
    centre = math.fsum(values) / n
    spread = math.fsum((value - centre) ** 2 for value in values)
    return Estimate(centre, math.sqrt(spread / (n - 1) / n) if n > 1 else 0.0, n)


def wilson(right: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Interval of a share, here 95%: (low, high); (0, 1) of nothing."""
    if n == 0:
        return 0.0, 1.0
    p, square = right / n, z * z
    centre = (p + square / (2 * n)) / (1 + square / n)
    half = z * math.sqrt(p * (1 - p) / n + square / (4 * n * n)) / (1 + square / n)
    return max(0.0, centre - half) if right else 0.0, min(1.0, centre + half) if right < n else 1.0


def bootstrap(
    values: Sequence[float], statistic: Callable[[Sequence[float]], float], rounds: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """(standard error, low, high): the statistic over resampled items, 95% of the rounds between low and high."""
    draw = random.Random(seed)
    found = sorted(statistic(draw.choices(values, k=len(values))) for _ in range(rounds))
    centre = math.fsum(found) / rounds
    error = math.sqrt(math.fsum((one - centre) ** 2 for one in found) / max(1, rounds - 1))
    return error, found[int(0.025 * rounds)], found[min(rounds - 1, int(0.975 * rounds))]


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that one of k samples drawn from n, of which `right` are right, is right; ConfigError for fewer samples than k."""
    if not 1 <= k <= n or not 0 <= right <= n:
        raise ConfigError(f"pass@{k} needs at least {k} samples of which 0 to all are right; there are {n}, {right} of them right")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def majority(answers: Sequence[str | None]) -> str | None:
    """The answer given most often, of equal ones the first; None where no answer could be read."""
    counts = Counter(answer for answer in answers if answer is not None)
    return max(counts, key=lambda answer: (counts[answer], -answers.index(answer))) if counts else None


def perplexity(logprobs: Sequence[float]) -> Estimate:
    """exp(-mean) of per-item log-probabilities; standard error by the delta method."""
    one = mean(logprobs)
    if one.n == 0:
        return one
    value = math.exp(min(700.0, -one.value))
    return Estimate(value, value * one.stderr, one.n)


def bits_per_byte(nlls: Sequence[float], num_bytes: Sequence[int]) -> Estimate:
    """Total NLL in nats over ln 2 times the total bytes; standard error of the ratio over documents by the delta method."""
    total, size, n = math.fsum(nlls), sum(num_bytes), len(nlls)
    if size == 0:
        return Estimate(math.nan, math.nan, 0)
    ratio = total / size
    spread = math.fsum((nll - ratio * count) ** 2 for nll, count in zip(nlls, num_bytes, strict=True))
    error = math.sqrt(spread * n / (n - 1)) / size if n > 1 else 0.0
    return Estimate(ratio / math.log(2), error / math.log(2), n)
