"""Progress of a build: one rich bar per stage on a terminal, otherwise a plain line when a stage ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class BuildProgress:
    """Context manager to be called with stage, work done and work in all; bytes where the stage reads text."""

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}

    def __enter__(self) -> BuildProgress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description:<11}"), BarColumn(), TextColumn("{task.percentage:>3.0f}% {task.fields[rate]}"))
            self._bars = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` is finished."""
        started = self._started.setdefault(stage, time.monotonic())
        seconds = time.monotonic() - started
        rate = f"{done / max(seconds, 1e-9) / 1e6:.1f} MB/s" if total > 1_000_000 and done else ""
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total, rate="")
            self._bars.update(self._tasks[stage], completed=done, total=total, rate=rate)
        elif done >= total:
            print(f"{stage:<11} {seconds:6.1f} s  {rate}", file=sys.stderr, flush=True)


@contextmanager
def bytes_bar(stage: str, least: int = 100_000_000) -> Iterator[Callable[[int, int, str], None]]:
    """A bar for work counted in bytes: a function of (done, in all, what). Silent where there are fewer than `least` bytes to do."""
    with BuildProgress() as bars:

        def show(done: int, total: int, what: str) -> None:
            if total >= least:
                bars(stage, done, total)

        yield show
