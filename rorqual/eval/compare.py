"""Two runs on the same items: paired differences with 95% intervals. No torch.

The difference is taken item by item, so what both find hard cancels: mean of d_i with s(d) / sqrt(n), an interval by resampling items, and
for right-or-wrong scores McNemar's exact test on the items that only one of the two got right. Runs whose prompts differ are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rorqual.errors import DataError
from rorqual.eval import metrics
from rorqual.eval.results import table

ROUNDS = 2000


@dataclass(frozen=True)
class Paired:
    """Second run minus first of one metric over n common items; `p` is McNemar's, None where scores are not right or wrong."""

    first: float
    second: float
    difference: float
    stderr: float
    low: float
    high: float
    n: int
    p: float | None


def paired(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Paired:
    """DataError for lists of unequal length or without items."""
    if len(first) != len(second) or not first:
        raise DataError(f"{len(first)} and {len(second)} scores cannot be paired; both runs need the same items")
    gaps = [b - a for a, b in zip(first, second, strict=True)]
    whole = metrics.mean(gaps)
    _, low, high = metrics.bootstrap(gaps, lambda some: math.fsum(some) / len(some), ROUNDS, seed)
    binary = set(first) | set(second) <= {0.0, 1.0}
    p = mcnemar(gaps.count(1.0), gaps.count(-1.0)) if binary else None
    return Paired(metrics.mean(first).value, metrics.mean(second).value, whole.value, whole.stderr, low, high, len(gaps), p)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p: chance of a split at least so uneven if gains and losses were equally likely."""
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    return min(1.0, 2 * tail)


def compare(first: dict[str, Any], second: dict[str, Any], seed: int = 0) -> dict[str, dict[str, Paired]]:
    """By task and metric, over the items that both runs judged. DataError where prompts differ or no task is common."""
    out: dict[str, dict[str, Paired]] = {}
    for name, one in first["tasks"].items():
        other = second["tasks"].get(name)
        if other is None:
            continue
        if one.get("template_sha256") != other.get("template_sha256") or one.get("version") != other.get("version"):
            raise DataError(f"task {name} had other prompts in the two runs (shots, version or data); run both with the same settings")
        scores = [{item["id"]: _scores(item) for item in run["items"]} for run in (one, other)]
        for metric in dict.fromkeys(metric for item in scores[0].values() for metric in item):
            common = [key for key, item in scores[0].items() if metric in item and metric in scores[1].get(key, {})]
            if common:
                found = paired([scores[0][key][metric] for key in common], [scores[1][key][metric] for key in common], seed)
                out.setdefault(name, {})[metric] = found
    if not out:
        raise DataError("the two runs have no task with common items; compare runs of the same tasks")
    return out


def _scores(item: dict[str, Any]) -> dict[str, float]:
    scores = dict(item.get("scores", {}))
    if item.get("bytes"):
        scores["bits_per_byte"] = item["nll"] / (math.log(2) * item["bytes"])
    return scores


def report(first: dict[str, Any], second: dict[str, Any], seed: int = 0) -> str:
    """The comparison as a table; "=" stands where the interval holds 0."""
    rows = []
    for name, metrics_of in compare(first, second, seed).items():
        for metric, one in metrics_of.items():
            verdict = "=" if one.low <= 0 <= one.high else "higher" if one.difference > 0 else "lower"
            rows.append([
                name, metric, f"{one.first:.4f}", f"{one.second:.4f}", f"{one.difference:+.4f}", f"{one.stderr:.4f}",
                f"[{one.low:+.4f}, {one.high:+.4f}]", "-" if one.p is None else f"{one.p:.3g}", str(one.n), verdict,
            ])  # fmt: skip
    names = [str(run.get("model", {}).get("name", "?")) for run in (first, second)]
    head = ["task", "metric", "first", "second", "difference", "stderr", "95% interval", "McNemar p", "items", "second is"]
    return f"first: {names[0]}; second: {names[1]}; bits per byte as the mean over documents\n" + table(rows, head)
