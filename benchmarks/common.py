"""What every benchmark shares: the JSON line, the facts about the machine, and alternating timings of ours and a peer's."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rorqual.config import ModelConfig
from rorqual.errors import ConfigError

CONFIGS = Path(__file__).parent / "configs"


def load_config(name: str) -> ModelConfig:
    """A configuration of benchmarks/configs by name, or a config.json by path."""
    path = CONFIGS / f"{name}.json"
    if path.exists():
        return ModelConfig.from_file(path)
    if Path(name).exists():
        return ModelConfig.from_file(name)
    raise ConfigError(f"configuration ({name!r}) is not known; use {', '.join(sorted(p.stem for p in CONFIGS.glob('*.json')))} or a path")


def machine() -> dict[str, Any]:
    """Processor, threads and versions: what a figure means nothing without."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    isa = torch.backends.cpu.get_cpu_capability()
    return {
        "cpu": name,
        "isa": isa,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def emit(what: str, value: float, peer: float | None, ratio: float | None, **more: Any) -> None:
    """One JSON line: what, value, peer, ratio, then the rest."""

    def short(x: Any) -> Any:
        return float(f"{x:.4g}") if isinstance(x, float) else x

    line = {"what": what, "value": value, "peer": peer, "ratio": ratio, **more, **machine()}
    print(json.dumps({key: short(x) for key, x in line.items()}), flush=True)


def alternate(
    ours: Callable[[], object], peer: Callable[[], object] | None, seconds: float, least: int = 3, most: int = 50
) -> tuple[list[float], list[float]]:
    """Seconds per call of both, one after the other until the time is up, after one warm-up call each."""
    calls = [ours] if peer is None else [ours, peer]
    times: list[list[float]] = [[], []]
    for call in calls:
        call()
    end = time.perf_counter() + seconds
    while len(times[0]) < most and (time.perf_counter() < end or len(times[0]) < least):
        for call, into in zip(calls, times, strict=False):
            start = time.perf_counter()
            call()
            into.append(time.perf_counter() - start)
    return times[0], times[1]


def paired_ratio(ours: list[float], peer: list[float]) -> float:
    """How many times faster ours is: the median over neighbouring pairs, so that a slow minute of the machine hits both."""
    return statistics.median(b / a for a, b in zip(ours, peer, strict=True))
