"""A run's metrics.jsonl, read in bounded memory: steps averaged into at most 1,024 points, expert loads at up to 160 moments.

Reads what a killed run leaves: a last line cut short and lines that are not JSON objects are counted and left out. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rorqual.errors import RunError
from rorqual.html.numbers import finite

Row = dict[str, Any]

_AVERAGED = ("loss", "main_loss", "mtp_loss", "balance_loss", "grad_norm", "tokens_per_second", "share_of_ceiling")
_MAX_POINTS = 1024
_MAX_LOADS = 160
_MAX_OTHERS = 4096


@dataclass
class History:
    """Rows by kind, in the order of the file. Train rows may stand for several steps: `_AVERAGED` keys are means, the rest the last value."""

    train: list[Row] = field(default_factory=list)
    loads: list[Row] = field(default_factory=list)
    validation: list[Row] = field(default_factory=list)
    samples: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    steps: int = 0
    """Train lines read."""
    broken: int = 0
    """Lines that were not JSON objects."""

    @property
    def x_key(self) -> str:
        """`tokens` when every point has a count of tokens seen, else `step`."""
        rows = [*self.train, *self.validation]
        return "tokens" if rows and all(finite(row.get("tokens")) is not None for row in rows) else "step"


class _Halving:
    """A list that keeps one of every `stride` items offered, and doubles the stride when it is full."""

    def __init__(self, limit: int, merge: Callable[[Row, Row], Row] | None = None) -> None:
        self.limit, self.merge = limit, merge
        self.items: list[Row] = []
        self.stride, self.offered = 1, 0

    def add(self, item: Row) -> None:
        """Takes one item in; a merged one joins the item that is already there."""
        if self.offered % self.stride == 0:
            self.items.append(item)
        elif self.merge is not None:
            self.items[-1] = self.merge(self.items[-1], item)
        self.offered += 1
        if len(self.items) > self.limit and self.offered % (2 * self.stride) == 0:
            pairs = zip(self.items[::2], self.items[1::2], strict=True)
            self.items = [self.merge(a, b) if self.merge else a for a, b in pairs]
            self.stride *= 2


def _merge(first: Row, second: Row) -> Row:
    """One row for the steps of both: means weighted by how many steps each stands for."""
    merged = {**first, **second}
    counts = first.get("_steps", 1), second.get("_steps", 1)
    for key in _AVERAGED:
        a, b = finite(first.get(key)), finite(second.get(key))
        if a is not None and b is not None:
            merged[key] = (a * counts[0] + b * counts[1]) / (counts[0] + counts[1])
    merged["_steps"] = counts[0] + counts[1]
    return merged


def read_history(path: Path) -> History:
    """Reads the file; an absent one gives an empty history. RunError when it cannot be read."""
    history = History()
    train, loads = _Halving(_MAX_POINTS, _merge), _Halving(_MAX_LOADS)
    others = {"validation": _Halving(_MAX_OTHERS), "sample": _Halving(_MAX_OTHERS), "event": _Halving(_MAX_OTHERS)}
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                row = _parse(line)
                if row is None:
                    history.broken += bool(line.strip())
                elif row.get("kind") == "train":
                    history.steps += 1
                    load = row.pop("load", None)
                    if load:
                        loads.add({"step": row.get("step"), "tokens": row.get("tokens"), "load": load})
                    train.add(row)
                elif row.get("kind") in others:
                    others[row["kind"]].add(row)
    except FileNotFoundError:
        return history
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    history.train, history.loads = train.items, loads.items
    history.validation, history.samples, history.events = (others[kind].items for kind in ("validation", "sample", "event"))
    return history


def _parse(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
