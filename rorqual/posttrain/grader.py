"""A process of its own that asks reasoning-gym for scores, so that an answer that makes a scorer hang or crash costs one verdict. No torch.

    grader = Grader(seconds=10)
    grader.score("chain_sum", "42", entry)          # 1.0; GraderError when the scorer raised, TimeoutError when it was killed

Only tasks of `problems.ALLOWED_TASKS` are asked, none of which evaluates the answer. The process is started at the first question and
again after it was killed. One JSON object per line in both directions.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rorqual.errors import RorqualError

_ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 60.0  # reasoning-gym's import


class GraderError(RorqualError):
    """The scorer raised, or its process ended."""


class Grader:
    """One grading process; not for several threads at once. `seconds` limit one answer."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def score(self, task: str, answer: str, entry: Mapping[str, Any]) -> float:
        """reasoning-gym's score of an answer, from 0 to 1."""
        first = self._process is None or self._process.poll() is not None
        if first:
            self._start()
        process = self._process
        assert process is not None and process.stdin is not None
        try:
            process.stdin.write(json.dumps({"task": task, "answer": answer, "entry": entry}, default=str).encode() + b"\n")
            process.stdin.flush()
            line = self._line(self.seconds + (_START_SECONDS if first else 0.0))
        except TimeoutError:  # an OSError too
            raise
        except OSError as error:
            self.close()
            raise GraderError(f"the grading process ended: {error}") from None
        reply = json.loads(line)
        if "error" in reply:
            raise GraderError(str(reply["error"]))
        return float(reply["score"])

    def close(self) -> None:
        """Ends the process, whatever it does."""
        process, self._process, self._rest = self._process, None, b""
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _start(self) -> None:
        self.close()
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from {__name__} import serve; serve()"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)

    def _line(self, seconds: float) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                self.close()
                raise TimeoutError(f"no score within {self.seconds:g} s; the grading process was killed")
            read = os.read(self._process.stdout.fileno(), 1 << 16)
            if not read:
                self.close()
                raise GraderError("the grading process ended without a word")
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def serve() -> None:
    """The grading process: scores what stands on its input until that ends. What scorers print goes nowhere."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    import reasoning_gym  # type: ignore[import-untyped,unused-ignore]

    from rorqual.posttrain.problems import ALLOWED_TASKS

    sets: dict[str, Any] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            name = str(asked["task"])
            if name not in ALLOWED_TASKS:
                raise ValueError(f"task {name!r} is not allowed")
            if name not in sets:
                sets[name] = reasoning_gym.create_dataset(name, size=1, seed=0)
            reply: dict[str, object] = {"score": float(sets[name].score_answer(asked["answer"], entry=asked["entry"]))}
        except Exception as error:  # a scorer's own failure is no verdict
            reply = {"error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(reply), file=out, flush=True)
