"""Compiles the C++ files at first use into the user's cache, keyed by source, compiler and instruction set.

The object takes OpenMP's symbols from the library that torch has already loaded, so that both share one pool of threads.
Linking a second OpenMP runtime would make two pools fight for the cores.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = [
    Path(__file__).with_name(f"{name}.cpp")
    for name in ("decode", "tree", "grouped", "native", "projections", "ffn", "attention", "sampling", "fp8")  # the longest first
]
HEADERS = [Path(__file__).with_name(name) for name in ("lanes.h", "tiles.h", "panels.h", "strips.h")]
_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math"]


@dataclass(frozen=True)
class Built:
    """The loaded library, or None and why there is none; `detail` says how it was compiled."""

    library: ctypes.CDLL | None
    detail: str


def cache_folder() -> Path:
    """$RORQUAL_CACHE, else $XDG_CACHE_HOME/rorqual, else ~/.cache/rorqual."""
    if "RORQUAL_CACHE" in os.environ:
        return Path(os.environ["RORQUAL_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rorqual"


def instruction_set() -> str:
    """The CPU's feature flags as the system names them: code compiled for this machine must not run on a lesser one."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return " ".join(sorted(line.split(":", 1)[1].split()))
    except OSError:
        pass
    return f"{platform.machine()} {platform.processor()}"


def compiler() -> str | None:
    """$CXX, else the first of c++, g++, clang++ on the path."""
    wanted = os.environ.get("CXX")
    return shutil.which(wanted) if wanted else next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)


def build() -> Built:
    """Loads the cached library, compiling it first if need be (about a second). Never raises for a machine without a compiler."""
    if os.environ.get("RORQUAL_NATIVE") == "0":
        return Built(None, "switched off by RORQUAL_NATIVE=0")
    path = compiler()
    if path is None:
        return Built(None, "no C++ compiler found (c++, g++, clang++ or $CXX)")
    why = ""
    for openmp in (True, False):
        try:
            return Built(
                _load(path, openmp),
                f"compiled by {Path(path).name} with -march=native, {'OpenMP of torch' if openmp else 'one thread: ' + why}",
            )
        except (OSError, subprocess.SubprocessError) as error:
            stderr = getattr(error, "stderr", "") or ""
            why = (stderr.strip().splitlines() or [str(error)])[-1]
    return Built(None, f"{Path(path).name} failed: {why}")


def _load(path: str, openmp: bool) -> ctypes.CDLL:
    version = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()[0]
    tuned = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    flags = [*_FLAGS, tuned, *(["-fopenmp"] if openmp else [])]
    key = "\0".join([*(source.read_text() for source in SOURCES + HEADERS), version, instruction_set(), *flags])
    target = cache_folder() / "kernels" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            linked, objects = Path(folder) / "native.so", [str(Path(folder) / f"{source.stem}.o") for source in SOURCES]
            with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) as pool:
                list(pool.map(lambda source, made: _compile([path, *flags, "-c", str(source), "-o", made]), SOURCES, objects))
            undefined = ["-undefined", "dynamic_lookup"] if platform.system() == "Darwin" else []
            subprocess.run(
                [path, "-shared", *undefined, *objects, "-o", str(linked)], capture_output=True, text=True, timeout=120, check=True
            )
            os.replace(linked, target)
    return ctypes.CDLL(str(target))


def _compile(command: list[str]) -> None:
    """Runs one compiler; CalledProcessError with what it said where it fails, TimeoutExpired after two minutes."""
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=120, check=True)
