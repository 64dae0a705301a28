"""Twenty steps of T0 with a fixed seed: a refactor leaves these losses identical to the bit (design: determinism).

On the processor, torch release and kernel backend that golden.json names the comparison is exact. Elsewhere other instruction
sets sum in another order, and twenty steps amplify the last bit: the tolerance is 1e-3 relative, far below what any change of
a formula does. After an intended change of numbers: python -m tests.train.test_trainer_golden
"""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from rorqual.kernels import build, native
from rorqual.train.trainer import train
from tests.tiny import t0
from tests.train.tiny_run import TinyData, tiny_run

FILE = Path(__file__).with_name("golden.json")


def machine() -> dict[str, Any]:
    """What the bits depend on."""
    flags = hashlib.sha256(build.instruction_set().encode()).hexdigest()[:16]
    return {
        "system": platform.machine(),
        "flags": flags,
        "torch": torch.__version__,
        "compiled_kernels": native.library().library is not None,
    }


def losses() -> list[float]:
    """Losses of the twenty steps, on one thread."""
    run = tiny_run(20, model={"num_hidden_layers": 3}, checkpoint_every_steps=100, validate_every_steps=100)
    run = run.with_({"model": t0(initializer_range=0.02)})
    seen: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            train(
                run,
                Path(folder) / "run",
                data=TinyData(),
                progress=False,
                ceiling_gflops=1.0,
                on_step=lambda state, result, _: seen.append(result.loss),
            )
    finally:
        torch.set_num_threads(threads)
    return seen


def test_golden_losses() -> None:
    golden, found = json.loads(FILE.read_text()), losses()
    wanted = [float.fromhex(text) for text in golden["losses"]]
    assert len(found) == len(wanted) == 20
    if golden["machine"] == machine():
        assert [loss.hex() for loss in found] == golden["losses"]
    assert found == pytest.approx(wanted, rel=1e-3)
    assert found[-1] < found[0] - 1.0


if __name__ == "__main__":
    FILE.write_text(json.dumps({"machine": machine(), "losses": [loss.hex() for loss in losses()]}, indent=1) + "\n")
