"""Ctrl-C and SIGTERM as a request that the training loop answers between two micro-batches, by saving and leaving."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

CAUGHT = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While the context lasts, the first SIGINT or SIGTERM only sets `signal`; a second one does what it always did.

    Outside the main thread signals cannot be caught, and the context does nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._caught) for number in CAUGHT}
        return self

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        self.release()

    def release(self) -> None:
        """Gives the signals back to whoever handled them before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def __exit__(self, *_: object) -> None:
        self.release()
