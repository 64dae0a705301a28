"""What a run says about itself: one JSON object per line, always; other sinks by name; a progress bar or plain lines.

Record kinds: `train` (one per logged step), `validation`, `event` (start, resume, stop, samples). `step` counts completed
steps. A value that is not finite is written as null, since JSON has no word for it. Records hold plain numbers only, so no
tensor, and no graph, outlives its step (field case F37).
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from rorqual.errors import ConfigError, MissingExtraError, RunError

SINKS = ("tensorboard", "trackio", "wandb")


def finite(value: Any) -> Any:
    """The value with every non-finite float replaced by None, through lists and dictionaries."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def memory_bytes(device: torch.device) -> int:
    """Memory in use: the peak allocated on a CUDA device, else the resident size of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no /proc (macOS): the peak is what the system offers, in bytes there
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Sink(Protocol):
    """Somewhere else that numbers go."""

    def log(self, values: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoardSink:
    """Scalars in `RUN/tensorboard/`."""

    def __init__(self, folder: Path, name: str, config: dict[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtraError("--sink tensorboard", "tensorboard", "tensorboard") from None
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class RunSink:
    """A tracker with the interface `init`, `log`, `finish`: trackio (local) and wandb share it."""

    def __init__(self, module: str, folder: Path, name: str, config: dict[str, Any]) -> None:
        import importlib

        try:
            self._tracker = importlib.import_module(module)
        except ImportError:
            raise MissingExtraError(f"--sink {module}", module, module) from None
        self._tracker.init(project="rorqual", name=name, config=config)

    def log(self, values: dict[str, float], step: int) -> None:
        self._tracker.log(values, step=step)

    def close(self) -> None:
        self._tracker.finish()


def open_sink(kind: str, folder: Path, name: str, config: dict[str, Any]) -> Sink:
    """The sink of that name; ConfigError for an unknown one, MissingExtraError where its package is not installed."""
    if kind not in SINKS:
        raise ConfigError(f"sink ({kind!r}) is not known; use {', '.join(SINKS)}")
    return TensorBoardSink(folder, name, config) if kind == "tensorboard" else RunSink(kind, folder, name, config)


class MetricsLog:
    """Appends records to metrics.jsonl, a whole line at a time, and passes scalars on to the sinks."""

    def __init__(self, path: Path, sinks: Sequence[Sink] = ()) -> None:
        self.path, self.sinks = path, list(sinks)
        self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, **values: Any) -> dict[str, Any]:
        """Writes one record, flushed; RunError when the disk is full: the checkpoints are not touched by that."""
        record = {"kind": kind, **finite(values)}
        try:
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise RunError(
                f"could not write {self.path}: {error.strerror or error}; the last checkpoint is intact; free space, then --resume"
            ) from error
        if self.sinks and kind != "event":
            flat = {f"{kind}/{key}": float(v) for key, v in record.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
            for sink in self.sinks:
                sink.log(flat, int(record["step"]))
        return record

    def close(self) -> None:
        """Closes the file, which may fail on a full disk once more, and the sinks."""
        try:
            self._file.close()
        except OSError:
            pass  # the write that failed has been reported
        for sink in self.sinks:
            sink.close()


class Progress:
    """A live bar on a terminal, else a plain line every few seconds and at the end."""

    plain_seconds = 10.0

    def __init__(self, total_steps: int, done: int, enabled: bool = True) -> None:
        self._total, self._enabled, self._last, self._bar = total_steps, enabled, 0.0, None
        self._live: Any = None
        if enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            self._live = Bars(
                TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"), TimeElapsedColumn(), TextColumn("left"),
                TimeRemainingColumn(), console=Console(stderr=True),
            )  # fmt: skip
            self._bar = self._live.add_task("training", total=total_steps, completed=done, figures="")
            self._live.start()

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Shows a completed step."""
        self.show(step, f"loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s")

    def show(self, step: int, figures: str) -> None:
        """Shows a completed step with figures of the caller's choice."""
        if self._live is not None:
            self._live.update(self._bar, completed=step, figures=figures)
        elif self._enabled and (time.monotonic() - self._last > self.plain_seconds or step == self._total):
            self._last = time.monotonic()
            self.say(f"step {step}/{self._total}  {figures}")

    def say(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False)
        elif self._enabled:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None
