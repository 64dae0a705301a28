"""The Triton kernels of a decode step, attention included: values, row independence, NaN in free slots; cases in triton_cases.py.

Triton decides when it is imported whether it interprets, so the cases run in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("triton_cases.py")


def run_cases(path: Path, interpret: bool) -> str:
    """Runs a file of cases with pytest in a process of its own; its output, where all passed."""
    env = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0"}
    if interpret:
        env["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", str(path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_in_the_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed")
    assert "12 passed" in run_cases(CASES, interpret=True)


@pytest.mark.gpu
def test_on_a_device():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert "12 passed" in run_cases(CASES, interpret=False)
