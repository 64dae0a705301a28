"""The report's tables 3 (base models) and 6 (chat models) and Aider's leaderboard, beside our own figures; published.json has the sources. No torch.

A row without a task of ours says so; one with a task says whether its file lies in the data folder or is to be supplied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rorqual.eval import data
from rorqual.eval.results import table
from rorqual.eval.tasks import catalog

TIE = 0.3
"""Points up to which the report takes two results for equal (section 4.4.2)."""


@dataclass(frozen=True)
class Row:
    """One benchmark of one table; `values` in the order of the table's models, percent or bits per byte, None where none was given.

    `of` is our metric that stands beside them, the task's first one where it is None.
    """

    benchmark: str
    metric: str
    shots: int | None
    task: str | None
    values: list[float | None]
    of: str | None = None


@dataclass(frozen=True)
class Table:
    """`name` is "base", "chat" or "aider"."""

    name: str
    source: str
    note: str
    models: list[str]
    rows: list[Row]


def tables() -> list[Table]:
    """All tables."""
    value = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    return [Table(one["name"], one["source"], one["note"], one["models"], [Row(**row) for row in one["rows"]]) for one in value["tables"]]


def status(row: Row, folder: Path | None = None) -> str:
    """ "no harness", "data to be supplied" or the task's name; without a folder the name of every task there is."""
    if row.task is None:
        return "no harness"
    if folder is None:
        return row.task
    names = catalog.GROUPS.get(row.task, (row.task,))
    there = all(data.find(folder, catalog.task(name).files) is not None for name in names)
    return row.task if there else f"{row.task}: data to be supplied"


def report(folder: Path | None = None) -> str:
    """All tables as text."""
    parts = []
    for one in tables():
        rows = [
            [f"{row.benchmark} ({row.metric})", "-" if row.shots is None else str(row.shots), *map(_text, row.values), status(row, folder)]
            for row in one.rows
        ]
        parts.append(f"{one.source}\n({one.note})\n" + table(rows, ["benchmark", "shots", *one.models, "task here"]))
    return "\n\n".join(parts)


def beside(found: Mapping[str, Any]) -> str:
    """Our figures of a run, by task, beside the published ones of the same benchmark; groups of tasks are averaged over items."""
    parts = []
    for one in tables():
        rows = []
        for row in one.rows:
            ours = _ours(row, found)
            if ours is not None:
                rows.append(
                    [f"{row.benchmark} ({row.metric})", "-" if row.shots is None else str(row.shots), ours, *map(_text, row.values)]
                )
        if rows:
            parts.append(f"{one.source}\n({one.note})\n" + table(rows, ["benchmark", "shots", "this run", *one.models]))
    return "\n\n".join(parts) or "none of these tasks is in the report's tables"


def _ours(row: Row, found: Mapping[str, Any]) -> str | None:
    names = catalog.GROUPS.get(row.task or "", (row.task or "",))
    parts = [found[name] for name in names if name in found]
    if not parts or (len(parts) < len(names) and row.task in catalog.GROUPS):
        return None
    firsts = [part["metrics"].get(row.of) if row.of else next(iter(part["metrics"].values()), None) for part in parts]
    read = [one for one in firsts if one is not None and one["value"] is not None and one["n"]]
    if not read:
        return "-"
    value = sum(one["value"] * one["n"] for one in read) / sum(one["n"] for one in read)
    limited = any(part["n"] != one["n"] for part, one in zip(parts, firsts, strict=True) if one is not None)
    return f"{value if row.metric == 'BPB' else 100 * value:.{3 if row.metric == 'BPB' else 1}f}" + ("*" if limited else "")


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
