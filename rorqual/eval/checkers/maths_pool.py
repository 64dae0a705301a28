"""A few processes that ask `math-verify` (maths_process.py), shared by all threads; each call has its time limit, and keeps it. No torch.

The limit counts from the moment that a process has the question, not while the call waits for a free one, nor while the library loads.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rorqual.errors import DeviceError, MissingExtraError
from rorqual.eval.checkers.maths import Verdict

_ROOT = Path(__file__).resolve().parents[3]
_START = "import sys; sys.path.insert(0, sys.argv.pop()); from rorqual.eval.checkers.maths_process import main; main()"
_LOADING = 60.0
_SLACK = 0.5


class Process:
    """One of the processes; `judge` from one thread at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        process = subprocess.Popen(
            [sys.executable, "-B", "-c", _START, str(_ROOT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath, "PYTHONHASHSEED": "0"}, cwd="/", start_new_session=True, bufsize=0,
        )  # fmt: skip
        self._process = process
        said = self._line(process, _LOADING)
        if said is None or "ready" not in said:
            self.close()
            if said is not None:
                raise MissingExtraError("checking mathematical answers", "math-verify", "eval")
            raise DeviceError("the process that checks mathematical answers did not start; `python -c 'import math_verify'` shows why")
        return process

    @staticmethod
    def _line(process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any] | None:
        """One object from the process, None where none comes in time."""
        deadline, said = time.monotonic() + seconds, b""
        assert process.stdout is not None
        while not said.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
            if not part:
                return None
            said += part
        found: dict[str, Any] = json.loads(said)
        return found

    def judge(self, right: str, answer: str, seconds: float) -> Verdict:
        """The verdict, at the latest after `seconds` and half a second once the library is loaded."""
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"right": right, "answer": answer, "seconds": seconds}).encode() + b"\n")
            said = self._line(process, seconds + _SLACK)
        except OSError:
            said = None
        if said is None:
            self.close()
            return Verdict("undecided", f"no verdict within {seconds:g} s")
        return Verdict(said["word"], said["note"])

    def close(self) -> None:
        """Ends the process and its children at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
        self._process = None


class Pool:
    """Up to `size` processes, started when they are needed."""

    def __init__(self, size: int) -> None:
        self._idle: queue.LifoQueue[Process] = queue.LifoQueue()
        self._lock = threading.Lock()
        self._left = size

    def judge(self, right: str, answer: str, seconds: float) -> Verdict:
        """As `Process.judge`, on a process that is free."""
        process = self._taken()
        try:
            return process.judge(right, answer, seconds)
        finally:
            self._idle.put(process)

    def _taken(self) -> Process:
        with contextlib.suppress(queue.Empty):
            return self._idle.get_nowait()
        with self._lock:
            if self._left > 0:
                self._left -= 1
                return Process()
        return self._idle.get()

    def close(self) -> None:
        """Ends every process that is idle."""
        with contextlib.suppress(queue.Empty):
            while True:
                process = self._idle.get_nowait()
                process.close()
                self._left += 1


@functools.cache
def pool() -> Pool:
    """The pool of this process: one per core, at most four."""
    made = Pool(max(1, min(4, os.cpu_count() or 1)))
    atexit.register(made.close)
    return made


def judge(right: str, answer: str, seconds: float) -> Verdict:
    """The verdict of a shared process."""
    return pool().judge(right, answer, seconds)
