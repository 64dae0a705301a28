"""Sandbox runs per second and core: trivial Python programs, the same with seven standard-library imports, and graded ones.

python benchmarks/sandbox.py                         # every mechanism that holds here, one JSON line each
python benchmarks/sandbox.py --seconds 5

This process, the warden and all that comes of it are held to one core; runs follow one another. A rate is the best of several equal stretches,
since other work on the machine only takes away; `per_cpu_second` counts CPU time instead, which other work changes little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rorqual.errors import DeviceError
from rorqual.eval.grade import grade
from rorqual.eval.isolation.probe import MECHANISMS
from rorqual.eval.sandbox import Sandbox

_IMPORTS = "import collections, functools, heapq, itertools, math, re, string\nprint(math.pi)"
_CODE, _TESTS = "def add(a, b):\n    return a + b\n", "assert add(1, 2) == 3"


def rates(box: Sandbox, run: Callable[[Sandbox], object], seconds: float, stretches: int = 5) -> dict[str, float]:
    """Runs per second in the best stretch, and per second of CPU time, of this process and of everything it started, over all of them."""
    best, total, cpu = 0.0, 0, _cpu(box)
    for _ in range(stretches):
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds / stretches:
            run(box)
            count += 1
        best, total = max(best, count / (time.perf_counter() - start)), total + count
    return {"per_second": round(best, 1), "per_cpu_second": round(total / (_cpu(box) - cpu), 1)}


def _cpu(box: Sandbox) -> float:
    """CPU seconds so far of this process, of the warden and of all runs."""
    fields = Path(f"/proc/{box._warden.pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + box.cpu


def main() -> int:
    """Prints a line for each mechanism."""
    parser = argparse.ArgumentParser(description="Sandbox runs per second on one core.")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each figure (default: 10)")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for mechanism in MECHANISMS:
        try:
            box = Sandbox(mechanism=mechanism)
        except DeviceError as error:
            print(f"{mechanism}: {error}", file=sys.stderr)
            continue
        with box:
            found = {
                "trivial": rates(box, lambda box: box.run("print(1)"), args.seconds),
                "seven_imports": rates(box, lambda box: box.run(_IMPORTS), args.seconds),
                "graded": rates(box, lambda box: grade(box, _CODE, _TESTS), args.seconds),
            }
        print(
            json.dumps({"what": "sandbox runs per second, one core", "mechanism": mechanism, **found, "python": platform.python_version()}),
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
