"""The compiled kernels are cached, and their absence is explained and harmless."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from rorqual.kernels import build


@pytest.fixture(autouse=True)
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests also run where the kernels are switched off from outside."""
    monkeypatch.delenv("RORQUAL_NATIVE", raising=False)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    built = build.build()
    assert built.library is None and "no C++ compiler" in built.detail


def test_a_failing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken++"
    broken.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 1.0 && exit 0\necho 'disk on fire' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("RORQUAL_CACHE", str(tmp_path / "cache"))
    built = build.build()
    assert built.library is None and "disk on fire" in built.detail
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_switched_off_in_a_fresh_process() -> None:
    code = "from rorqual.kernels import ops; print(ops.backend_report()[0])"
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={"RORQUAL_NATIVE": "0", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "plain PyTorch" in out.stdout and "RORQUAL_NATIVE=0" in out.stdout


@pytest.mark.slow
def test_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if build.compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    monkeypatch.setenv("RORQUAL_CACHE", str(tmp_path))
    assert build.build().library is not None
    (made,) = tmp_path.rglob("*.so")
    stamp = made.stat().st_mtime_ns
    assert build.build().library is not None
    assert made.stat().st_mtime_ns == stamp


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="narrower vectors are named for x86-64 here")
@pytest.mark.parametrize("narrower", ["x86-64-v3", "x86-64"])
def test_kernels_for_narrower_vectors_pass_the_same_tests(narrower: str, tmp_path: Path) -> None:
    """AVX2 and SSE2 in place of what this machine has: 16 numbers are two or four vectors there."""
    path = build.compiler()
    if path is None or " avx2 " not in f" {build.instruction_set()} ":
        pytest.skip("no C++ compiler, or a machine without AVX2")
    lesser = tmp_path / "c++"
    lesser.write_text(f'#!/usr/bin/env bash\nexec {path} "${{@/-march=native/-march={narrower}}}"\n')
    lesser.chmod(0o755)
    env = {**os.environ, "CXX": str(lesser), "RORQUAL_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    here = Path(__file__).parent
    tests = [str(here / name) for name in ("test_ops.py", "test_decode.py", "test_tree.py", "test_ffn.py", "test_projections.py")]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], env=env, capture_output=True, text=True, cwd=here.parent.parent)
    assert done.returncode == 0, done.stdout[-3000:]
    assert list((tmp_path / "cache").rglob("*.so"))
