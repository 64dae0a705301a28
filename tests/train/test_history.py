"""Reading metrics.jsonl: kinds, broken lines, bounded size with exact means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rorqual.errors import RunError
from rorqual.train.history import read_history


def write(path: Path, rows: list[Any], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail, encoding="utf-8")
    return path


def test_rows_by_kind_and_broken_lines(tmp_path: Path) -> None:
    rows = [
        {"kind": "train", "step": 1, "tokens": 10, "main_loss": 2.0, "load": [[1, 2]]},
        {"kind": "validation", "step": 1, "tokens": 10, "bpb": 2.5},
        {"kind": "sample", "step": 1, "text": "x"},
        {"kind": "event", "event": "start"},
        {"kind": "something else"},
        [1, 2],
        "text",
    ]
    history = read_history(write(tmp_path / "m", rows, tail='{"kind": "train", "st'))
    assert (history.steps, history.broken) == (1, 3)
    assert history.train == [{"kind": "train", "step": 1, "tokens": 10, "main_loss": 2.0}]
    assert history.loads == [{"step": 1, "tokens": 10, "load": [[1, 2]]}]
    assert [row["bpb"] for row in history.validation] == [2.5]
    assert [row["text"] for row in history.samples] == ["x"]
    assert [row["event"] for row in history.events] == ["start"]
    assert history.x_key == "tokens"


def test_absent_file_is_an_empty_history_and_a_folder_an_error(tmp_path: Path) -> None:
    history = read_history(tmp_path / "absent")
    assert (history.train, history.x_key) == ([], "step")
    with pytest.raises(RunError, match="cannot read"):
        read_history(tmp_path)


def test_x_is_the_step_when_a_row_lacks_tokens(tmp_path: Path) -> None:
    rows = [{"kind": "train", "step": 1, "tokens": 10}, {"kind": "validation", "step": 1}]
    assert read_history(write(tmp_path / "m", rows)).x_key == "step"


@pytest.mark.parametrize("steps", [1025, 5000, 8192])
def test_long_runs_are_averaged_without_losing_a_step(tmp_path: Path, steps: int) -> None:
    rows = [
        {"kind": "train", "step": i, "tokens": i * 4, "main_loss": float(i), "lr": i / 1000, "load": [[i]]} for i in range(1, steps + 1)
    ]
    history = read_history(write(tmp_path / "m", rows))
    assert history.steps == steps
    assert 512 <= len(history.train) <= 1025
    assert len(history.loads) <= 161
    counts = [row.get("_steps", 1) for row in history.train]
    assert sum(counts) == steps
    assert sum(row["main_loss"] * n for row, n in zip(history.train, counts, strict=True)) == pytest.approx(steps * (steps + 1) / 2)
    assert history.train[-1]["step"] == steps
    assert history.train[-1]["lr"] == steps / 1000
    assert [row["step"] for row in history.loads] == sorted({row["step"] for row in history.loads})


def test_hostile_lines_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"[" * 100_000 + b"\n\xff\xfe\n" + b'{"kind": "train", "step": 3, "loss": NaN}\n\n')
    history = read_history(path)
    assert (history.broken, history.steps) == (2, 1)
