"""Show cores, ISA, measured rates, the torch build, and which kernel is chosen for each operation and why.

rorqual doctor              # about three seconds
rorqual doctor --json       # the same as one JSON object
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("numpy", "safetensors", "tokenizers", "pyarrow", "transformers")
_ISA = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16",
        "neon", "asimd", "bf16", "i8mm", "sve")  # fmt: skip


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code, 0 whatever the machine lacks: this verb judges nothing."""
    parser = argparse.ArgumentParser(
        prog="rorqual doctor", description="Show what this machine has, how fast it is, and which kernels are chosen and why."
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each of the two measurements (default: 1); 0 leaves them out")
    args = parser.parse_args(argv)
    if not 0 <= args.seconds <= 60:
        parser.error(f"--seconds ({args.seconds}) must be between 0 and 60")
    report = {"machine": machine(), "python": interpreter(), "torch": torch_build(), "rates": rates(args.seconds), "kernels": kernels()}
    report["sandbox"] = sandbox()
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 0


def machine() -> dict[str, Any]:
    """Cores that this process may use, instruction sets, memory and free disk in bytes, compiler."""
    from rorqual.kernels import build

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = set(build.instruction_set().split())
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        memory = None
    compiler = build.compiler()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores,
        "isa": [flag for flag in _ISA if flag in flags],
        "memory_bytes": memory,
        "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        "compiler": compiler,
        "kernel_cache": str(build.cache_folder()),
    }


def interpreter() -> dict[str, Any]:
    """Version of Python, of this package and of the packages it stands on; None for one that is not installed."""
    return {
        "version": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: _version(name) for name in ("rorqual", *_PACKAGES)},
    }


def torch_build() -> dict[str, Any]:
    """Which torch is installed (CPU, CUDA or ROCm build), what it sees, and the device that a run would take."""
    import torch

    hip, cuda = torch.version.hip, torch.version.cuda
    build = f"ROCm {hip}" if hip else f"CUDA {cuda}" if cuda else "CPU"
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if devices:
        why = f"the {build} build sees {len(devices)} device{'s' * (len(devices) != 1)}"
    elif build == "CPU":
        why = "this is a CPU build of torch; for a GPU, install one with `make install TORCH_INDEX=...` (README)"
    else:
        why = f"the {build} build sees no device; check the driver, or install the smaller CPU build (README)"
    return {
        "version": torch.__version__,
        "build": build,
        "devices": devices,
        "device": "cuda" if devices else "cpu",
        "why": why,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def rates(seconds: float) -> dict[str, float] | None:
    """Measured FP32 matrix-product rate and memory read rate; None where `seconds` is 0."""
    if not seconds:
        return None
    from rorqual.kernels import measure

    return {"gemm_gflops": round(measure.gemm_gflops(seconds), 1), "memory_gbps": round(measure.memory_gbps(seconds), 1)}


def kernels() -> list[dict[str, str]]:
    """For each operation with more than one implementation: which is used, and why."""
    from rorqual.kernels import ops

    return ops.backend_report()


def sandbox() -> dict[str, Any]:
    """What holds generated code on this machine (docs/sandbox.md), tried with a program that wants out; `error` where nothing does."""
    from rorqual.errors import DeviceError
    from rorqual.eval.sandbox import Sandbox

    try:
        with Sandbox() as box:
            return box.describe()
    except DeviceError as error:
        return {"mechanism": None, "error": str(error)}


def _sandbox_line(found: dict[str, Any]) -> str:
    if found["mechanism"] is None:
        return f"none: {found['error']}"
    uid = "a uid of its own" if found["own_uid"] else "your uid"
    return f"{found['mechanism']} ({found['detail']}), {uid}, memory of a run: {found['memory']}; {found['python']}; languages: {', '.join(found['languages'])}"


def _print(report: dict[str, Any]) -> None:
    host, python, torch, measured = (report[key] for key in ("machine", "python", "torch", "rates"))
    rows = [
        ("machine", f"{host['processor']}, {host['system']}"),
        ("cores", f"{host['cores']} usable by this process, {torch['threads']} torch threads"),
        ("ISA", f"{' '.join(host['isa']) or 'unknown'}; torch uses {torch['cpu_capability']}"),
        ("memory", _gigabytes(host["memory_bytes"])),
        ("disk", f"{_gigabytes(host['disk_free_bytes'])} free in this folder"),
        ("compiler", host["compiler"] or "none found: the plain PyTorch kernels are used; install g++ or name one in $CXX"),
        ("GEMM", f"{measured['gemm_gflops']:.1f} GFLOP/s FP32, measured" if measured else "not measured"),
        ("memory rate", f"{measured['memory_gbps']:.1f} GB/s, measured" if measured else "not measured"),
        ("torch", f"{torch['version']}, {torch['build']} build"),
        ("device", f"{torch['device']}: {torch['why']}"),
        ("Python", f"{python['version']} ({python['executable']})"),
        ("packages", ", ".join(f"{name} {number or 'not installed'}" for name, number in python["packages"].items())),
        ("sandbox", _sandbox_line(report["sandbox"])),
    ]
    for name, value in rows:
        print(f"{name:<12} {value}")
    print("\nkernels")
    groups: dict[tuple[str, str], list[str]] = {}
    for row in report["kernels"]:
        groups.setdefault((row["backend"], row["why"]), []).append(row["op"])
    for (backend, why), names in groups.items():
        print(f"  {backend}: {', '.join(names)}\n    because: {why}")


def _gigabytes(number: int | None) -> str:
    return "unknown" if number is None else f"{number / 1e9:.1f} GB"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"
