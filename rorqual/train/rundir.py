"""The folder of a run: who may write in it, what it holds, and how an interrupted run finds its place.

    config.json  lineage.json  metrics.jsonl  checkpoints/step-XXXXXXXX/  hf/  results.json  report.html  lock

A run folder is never overwritten without being asked. One process at a time works in it: the lock is an advisory lock of the
operating system on the file `lock`, so it vanishes with its holder however that ends, and the file left behind blocks nobody.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rorqual.errors import ConfigError, RunError
from rorqual.train.hyperparams import RunConfig, diff

CONTENTS = ("config.json", "lineage.json", "metrics.jsonl", "checkpoints", "hf", "results.json", "report.html")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns a refusal of the disk while `path` is replaced into a RunError, and leaves no partial file."""
    try:
        yield
    except OSError as error:
        path.with_name(f".{path.name}.partial").unlink(missing_ok=True)
        raise RunError(
            f"could not write {path}: {error.strerror or error}; what was there before is intact; free space or choose another disk, then --resume"
        ) from error


def write_atomic(path: Path, text: str) -> None:
    """Writes a text file that appears whole or not at all. RunError when the disk refuses."""
    partial = path.with_name(f".{path.name}.partial")
    with explained(path):
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


class RunFolder:
    """A run folder held by this process; use it as a context, which takes and gives back the lock."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: int | None = None

    config = property(lambda self: self.path / "config.json")
    lineage = property(lambda self: self.path / "lineage.json")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    checkpoints = property(lambda self: self.path / "checkpoints")

    # ------------------------------------------------------------------ lock

    def __enter__(self) -> RunFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunError(f"cannot use {self.path} as a run folder: {error.strerror or error}; choose another --out") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(handle, 500).decode("utf-8", "replace").strip()
            os.close(handle)
            raise RunError(
                f"run folder {self.path} is in use by another process ({holder or error.strerror}); wait for it, stop it, or choose another --out"
            ) from error
        os.ftruncate(handle, 0)
        os.write(handle, f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        self._lock = handle
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    # ------------------------------------------------------------------ start, overwrite, resume

    def holds_run(self) -> bool:
        """Whether something of a run is here."""
        return any((self.path / name).exists() for name in CONTENTS)

    def check_replaceable(self, overwrite: bool) -> None:
        """RunError when the folder holds a run, unless `overwrite` was asked for; a model folder is never taken for a run."""
        if self.config.exists() and not self.lineage.exists():
            raise RunError(f"{self.path} has a config.json but no lineage.json, so it is no run and is not replaced; choose another --out")
        if self.holds_run() and not overwrite:
            raise RunError(
                f"{self.path} already holds a run; continue it with --resume, choose another --out, or replace it with --overwrite"
            )

    def begin(self, run: RunConfig, lineage: dict[str, Any], *, overwrite: bool = False) -> None:
        """Makes the folder that of a new run, as far as `check_replaceable` lets it."""
        self.check_replaceable(overwrite)
        if self.holds_run():
            for name in CONTENTS:
                target = self.path / name
                shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        write_atomic(self.lineage, json.dumps(lineage, indent=2) + "\n")
        write_atomic(self.config, run.to_json())

    def stored_config(self) -> RunConfig:
        """The configuration that the run was started with."""
        return read_config(self.path)

    def check_same(self, run: RunConfig) -> None:
        """Refuses to resume with another configuration, naming every changed field (field case F31)."""
        changed = diff(self.stored_config(), run)
        if changed:
            listed = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items())
            raise ConfigError(
                f"cannot resume {self.path} with a changed configuration: {listed}. Resume without the change, or start a new phase: --init {self.path} with another --out"
            )


def read_config(path: str | Path) -> RunConfig:
    """The RunConfig of a run folder; RunError when there is none."""
    file = Path(path) / "config.json"
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunError(f"{path} is not a run folder: it has no config.json; start a run there without --resume") from None
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror or error}") from error
    try:
        return RunConfig.from_json(text)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


# ---------------------------------------------------------------------- metrics on disk


def truncate_metrics(path: str | Path, step: int) -> list[dict[str, Any]]:
    """Drops every line of a step after `step`, which a resumed run writes again (no step twice, F31), and a last line that a kill cut.

    Returns the records of a final validation among what stays. Reads and writes line by line, whatever the length of the run.
    """
    path = Path(path)
    if not path.exists():
        return []
    final, partial = [], path.with_name(f".{path.name}.partial")
    with explained(path), path.open(encoding="utf-8") as old, partial.open("w", encoding="utf-8") as new:
        for number, line in enumerate(old, start=1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                if not line.endswith("\n"):
                    break
                raise RunError(f"{path}:{number} is not JSON ({error}); restore the file or delete the line") from None
            if record.get("step", 0) <= step:
                new.write(line)
                final += [record] if record.get("final") else []
        new.flush()
        os.fsync(new.fileno())
    with explained(path):
        partial.replace(path)
    return final
