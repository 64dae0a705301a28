"""Lock, overwriting, stored configuration, metrics cut to a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rorqual.errors import ConfigError, RunError
from rorqual.train.rundir import RunFolder, read_config, truncate_metrics, write_atomic
from tests.train.tiny_run import tiny_run


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    """The second is refused with the first one's pid; a lock left by a dead process blocks nobody."""
    with RunFolder(tmp_path / "run"):
        with pytest.raises(RunError, match=f"in use by another process .pid {os.getpid()} on"):
            RunFolder(tmp_path / "run").__enter__()
    with RunFolder(tmp_path / "run"):
        pass
    script = "import fcntl, os, sys\nf = open(sys.argv[1], 'w')\nfcntl.flock(f, fcntl.LOCK_EX)\nf.write('pid 1 on elsewhere')\nf.flush()\nos._exit(1)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "run" / "lock")], check=False)
    assert (tmp_path / "run" / "lock").read_text() == "pid 1 on elsewhere"
    with RunFolder(tmp_path / "run"):
        assert f"pid {os.getpid()}" in (tmp_path / "run" / "lock").read_text()


def test_unusable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="choose another --out"):
        RunFolder(tmp_path / "file").__enter__()


def test_begin_keeps_what_is_there_unless_asked(tmp_path: Path) -> None:
    run = tiny_run()
    with RunFolder(tmp_path / "run") as folder:
        folder.begin(run, {"parents": []})
        (folder.path / "data").mkdir()
        (folder.checkpoints / "step-00000001").mkdir(parents=True)
        with pytest.raises(RunError, match="--resume"):
            folder.begin(run, {"parents": []})
        assert (folder.checkpoints / "step-00000001").is_dir()
        folder.begin(run, {"parents": []}, overwrite=True)
        assert not folder.checkpoints.exists() and (folder.path / "data").is_dir()
        assert folder.stored_config() == run
        folder.check_same(run)
        with pytest.raises(ConfigError, match=r"train\.total_tokens was 768, now 832"):
            folder.check_same(tiny_run(13, learning_rate=run.train.learning_rate, bias_update_speed=run.train.bias_update_speed,
                                       mtp_loss_weight=run.train.mtp_loss_weight))  # fmt: skip


def test_a_model_folder_is_not_taken_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "deepseek_v3"}')
    for overwrite in (False, True):
        with RunFolder(tmp_path) as folder, pytest.raises(RunError, match="it is no run and is not replaced"):
            folder.begin(tiny_run(), {}, overwrite=overwrite)
    assert (tmp_path / "config.json").read_text() == '{"model_type": "deepseek_v3"}'


def test_read_config(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="config.json"):
        read_config(tmp_path)


def test_truncate(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert truncate_metrics(path, 3) == []
    rows = [{"kind": "event"}, *({"kind": "train", "step": n} for n in range(1, 6)), {"kind": "validation", "step": 3, "final": True}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "tra')
    assert truncate_metrics(path, 3) == [rows[-1]]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [row for row in rows if row.get("step", 0) <= 3]
    path.write_text("broken\n{}\n")
    with pytest.raises(RunError, match="metrics.jsonl:1 is not JSON"):
        truncate_metrics(path, 3)


def test_write_atomic_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="what was there before is intact"):
        write_atomic(tmp_path / "missing" / "file", "text")
