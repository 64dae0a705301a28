"""Records on disk, sinks, the progress display."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from rorqual.errors import ConfigError, MissingExtraError, RunError
from rorqual.train.metrics import MetricsLog, Progress, finite, memory_bytes, open_sink


def test_non_finite_numbers_become_null(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    assert finite({"a": [1.0, nan, {"b": inf}], "c": 2}) == {"a": [1.0, None, {"b": None}], "c": 2}
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write("train", step=1, loss=nan, load=[[1, 2]])
    log.write("event", event="stopped", step=1)
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"kind": "train", "step": 1, "loss": None, "load": [[1, 2]]}, {"kind": "event", "event": "stopped", "step": 1}]


def test_losses_survive_to_the_bit(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    value = torch.tensor(1 / 3).item() + 1e-17
    log.write("train", step=1, loss=value)
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"].hex() == value.hex()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disk_is_an_error_of_ours() -> None:
    log = MetricsLog(Path("/dev/full"))
    with pytest.raises(RunError, match="No space left on device; the last checkpoint is intact"):
        log.write("train", step=1)
    log.close()


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = MetricsLog(tmp_path / "metrics.jsonl", [open_sink("tensorboard", tmp_path, "run", {})])
    log.write("train", step=3, loss=1.5, outcome="updated", load=[1])
    log.write("event", event="stopped")
    log.close()
    assert any(file.stat().st_size > 0 for file in (tmp_path / "tensorboard").iterdir())


def test_unknown_and_missing_sinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="tensorboard, trackio, wandb"):
        open_sink("mlflow", tmp_path, "run", {})
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rorqual\[trackio\]'"):
        open_sink("trackio", tmp_path, "run", {})


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(3, 0)
    for step in (1, 2, 3):
        progress.update(step, 2.5, 1234.0)
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["step 1/3  loss 2.500  1,234 tokens/s", "step 3/3  loss 2.500  1,234 tokens/s"]
    silent = Progress(3, 0, enabled=False)
    silent.update(3, 1.0, 1.0)
    silent.say("nothing")
    assert capsys.readouterr().err == ""


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress(2, 0)
    progress.update(1, 2.5, 1234.0)
    progress.say("a [line] of its own")
    progress.close()
    assert "a [line] of its own" in capsys.readouterr().err


def test_memory() -> None:
    assert 10_000_000 < memory_bytes(torch.device("cpu")) < 10**12
