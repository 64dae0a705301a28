"""Fixtures in upstream's schema: written to where a task looks for them, and run over a scripted model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rorqual.eval.models import Failure
from rorqual.eval.results import Progress
from rorqual.eval.run import Options, evaluate
from rorqual.eval.task import Task, Tools
from tests.eval.scripted import Scripted

FAILED = Failure("the server answered 500")


def put(folder: Path, place: str, rows: Sequence[dict[str, Any]]) -> Path:
    """Rows as JSON lines at a task's place."""
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return folder


def answered(task: Task, folder: Path, answers: Sequence[Any], shots: int = 0, tools: Tools | None = None) -> dict[str, Any]:
    """The task's part of a run over a model that gives these answers, one for each item."""
    items = task.items(folder, shots)
    by_name = {f"{task.name}/{item.id}": answer for item, answer in zip(items, answers, strict=True)}
    return _evaluated(task, items, Scripted(answer=lambda name, prompt: by_name[name]), folder, tools)


def chosen(task: Task, folder: Path, score: Callable[[str, str], Any], shots: int = 0) -> dict[str, Any]:
    """The same for a model with these log-probabilities of (context, continuation)."""
    return _evaluated(task, task.items(folder, shots), Scripted(score=score), folder, None)


def _evaluated(task: Task, items: Any, model: Scripted, folder: Path, tools: Tools | None) -> dict[str, Any]:
    with Progress(folder / "run" / "out.json", {}) as progress:
        return evaluate(task, items, model, progress, Options(), tools or Tools(20), lambda done, total: None)


def scores(found: dict[str, Any], name: str) -> list[float | None]:
    """An item's score in that metric, None for an item without one."""
    return [item.get("scores", {}).get(name) for item in found["items"]]
