"""answers.jsonl of a run: for every question of every rollout its answers with rewards by component and advantages, one line a question.

    {"rollout": 3, "step": 4, "problem": "chain_sum-0-7", "question": "...", "gold": "42", "mean": 0.25, "std": 0.5, "signal": true,
     "answers": [{"text": "...", "tokens": 31, "cut": false, "reward": 1.0, "advantage": 1.5, "logprob": -12.1,
                  "components": {"accuracy": {"value": 1.0, "verdict": "right"}}}, ...]}

`step` is the first optimiser step that the rollout feeds. A value that is not known is null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from rorqual.errors import RunError
from rorqual.posttrain.rewards import Judged
from rorqual.train.metrics import finite
from rorqual.train.rundir import explained

MAX_TEXT = 20_000
"""Characters kept of one answer's text."""


class AnswersLog:
    """Appends whole lines; a line of a rollout that is done again is dropped when the run is resumed."""

    def __init__(self, path: Path, rollouts: int) -> None:
        """`rollouts`: how many rollouts the state of the run knows; later ones in the file are forgotten."""
        self.path = path
        _forget(path, rollouts)
        self._file = path.open("a", encoding="utf-8")

    def write(self, records: list[dict[str, Any]]) -> None:
        """Adds a rollout's lines; RunError when the disk is full."""
        try:
            self._file.write("".join(json.dumps(finite(record), ensure_ascii=False, allow_nan=False) + "\n" for record in records))
            self._file.flush()
        except (OSError, UnicodeEncodeError) as error:
            raise RunError(f"could not write {self.path}: {error}; the last checkpoint is intact; free space, then --resume") from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _forget(path: Path, rollouts: int) -> None:
    if not path.exists():
        return
    partial = path.with_name(f".{path.name}.partial")
    with explained(path), partial.open("w", encoding="utf-8") as new:
        for line, record in _lines(path):
            if record["rollout"] <= rollouts:
                new.write(line)
        new.flush()
        os.fsync(new.fileno())
    with explained(path):
        partial.replace(path)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Whole lines with a rollout number; a last one that a kill cut is left out."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if line.endswith("\n") and isinstance(record, dict) and isinstance(record.get("rollout"), int):
                yield line, record


def read_answers(path: Path, most: int) -> list[list[dict[str, Any]]]:
    """The records of at most `most` rollouts, evenly chosen with the first and the last, each a list of questions; [] where there is no file."""
    if not path.is_file():
        return []
    numbers = sorted({record["rollout"] for _, record in _lines(path)})
    if len(numbers) > most:
        numbers = sorted({numbers[round(i * (len(numbers) - 1) / max(1, most - 1))] for i in range(most)})
    found: dict[int, list[dict[str, Any]]] = {number: [] for number in numbers}
    for _, record in _lines(path):
        if record["rollout"] in found:
            found[record["rollout"]].append(record)
    return list(found.values())


def summary(records: Sequence[Mapping[str, Any]], judged: Sequence[Judged]) -> dict[str, Any]:
    """Figures of a rollout's rewards: each component apart, because two that cancel have no signal together though each has one."""
    answers = [answer for record in records for answer in record["answers"]]
    known = [one.reward for one in judged if not math.isnan(one.reward)]
    components: dict[str, dict[str, Any]] = {}
    for name in judged[0].outcomes if judged else ():
        outcomes = [one.outcomes[name] for one in judged if one.outcomes[name].applies]
        values = [one.value for one in outcomes if one.verdict != "unknown"]
        components[name] = {
            "mean": fmean(values) if values else None, "std": pstdev(values) if values else None,
            "right": sum(one.verdict == "right" for one in outcomes), "wrong": sum(one.verdict == "wrong" for one in outcomes),
            "unknown": sum(one.verdict == "unknown" for one in outcomes),
        }  # fmt: skip
    lengths = [answer["tokens"] for answer in answers]
    return {
        "reward_mean": fmean(known) if known else None, "reward_std": pstdev(known) if known else None, "components": components,
        "groups": len(records), "groups_with_signal": sum(bool(record["signal"]) for record in records), "not_judged": len(judged) - len(known),
        "length_mean": fmean(lengths) if lengths else 0.0, "length_max": max(lengths, default=0), "cut_share": fmean([float(a["cut"]) for a in answers]) if answers else 0.0,
    }  # fmt: skip
