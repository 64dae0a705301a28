"""What a verb says about memory before it allocates: the planner's estimate, and a refusal of what cannot fit.

memory_check.add_option(parser)                                     # --ignore-memory
memory_check.check_memory(estimate, memory_check.available_memory(device), force=args.ignore_memory)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rorqual.errors import DeviceError
from rorqual.html.numbers import size

if TYPE_CHECKING:
    from rorqual.planner.estimate import Estimate

OPTION = "--ignore-memory"


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds --ignore-memory."""
    parser.add_argument(OPTION, action="store_true", help="start even where the estimate says that the memory is too small")


def available_memory(device: str = "cpu") -> int | None:
    """Bytes that can still be allocated on a device ("auto", "cpu", "cuda", "cuda:0", "mps"); None where nobody says.

    On the CPU the system's free memory, or what the process's control group leaves where that is less. Imports torch for CUDA only.
    """
    if device == "auto" or device.startswith("cuda"):
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.mem_get_info(torch.device("cuda" if device == "auto" else device))[0])
    from rorqual.cli.partial import available_bytes

    found = [limit for limit in (available_bytes(), _group_bytes()) if limit is not None]
    return min(found, default=None)


def check_memory(estimate: Estimate, available: float | None, force: bool = False) -> None:
    """Prints the estimate on standard error; DeviceError where it exceeds what is available, unless `force`."""
    largest = sorted(estimate.parts.items(), key=lambda part: -part[1])
    listed = ", ".join(f"{name.replace('_', ' ')} {size(value)}" for name, value in largest)
    free = "" if available is None else f"; {size(available)} are free"
    print(f"memory for {estimate.what}: about {size(estimate.total)} ({listed}){free}", file=sys.stderr)
    if available is None or estimate.total <= available or force:
        return
    raise DeviceError(
        f"{estimate.what} needs about {size(estimate.total)} of memory and {size(available)} are free; the largest part is {largest[0][0].replace('_', ' ')} "
        f"({size(largest[0][1])}): {_advice(largest[0][0])}, or start anyway with {OPTION}"
    )


def _advice(part: str) -> str:
    return {
        "activations": "use a smaller micro-batch or shorter sequences, or recompute more",
        "logits": "use a smaller micro-batch or shorter sequences",
        "cache": "give the cache less",
        "moments": "keep the moments in BF16, or use a smaller model",
        "weights": "keep the weights in BF16 or FP8 where that is offered, or use a smaller model",
    }.get(part, "use a smaller model or a larger machine")


def _group_bytes() -> int | None:
    """What the control group of this process leaves (version 2), None without a limit; cached files count as free."""
    root = Path("/sys/fs/cgroup")
    try:
        limit, used = ((root / name).read_text().strip() for name in ("memory.max", "memory.current"))
        files = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())["file"]
        return None if limit == "max" else max(0, int(limit) - int(used) + int(files))
    except (OSError, ValueError, KeyError):
        return None
