"""Start-up time of `rorqual --help` and of every verb's, each in a fresh process: one JSON line per verb, best of three.

python benchmarks/startup.py
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time

from rorqual.cli.main import VERBS


def seconds(argv: list[str]) -> float:
    """Wall time of one fresh process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "rorqual", *argv], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    """Prints what, value (seconds), limit (seconds), the interpreter and the processor's kind."""
    for verb in ("", *(verb for verbs in VERBS.values() for verb in verbs)):
        argv = [*verb.split(), "--help"]
        best = min(seconds(argv) for _ in range(3))
        line = {"what": f"rorqual {' '.join(argv)}", "value": round(best, 3), "unit": "s", "limit": 0.5}
        print(json.dumps(line | {"python": platform.python_version(), "machine": platform.machine()}), flush=True)


if __name__ == "__main__":
    main()
