"""A corpus of a few dozen generated modules, and the configuration of a run on it that takes seconds."""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rorqual.data.config import BuildConfig, DataConfig
from rorqual.kernels import measure
from rorqual.train import trainer
from rorqual.train.hyperparams import RunConfig
from tests.train.tiny_run import tiny_run


def measure_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run measures the ceiling for a second; a fiftieth does for one of six steps."""
    monkeypatch.setattr(measure, "gemm_gflops", functools.partial(measure.gemm_gflops, 0.02, size=256))


def write_corpus(folder: Path) -> Path:
    """Forty files of short functions, all different."""
    folder.mkdir(parents=True)
    for number in range(40):
        draw = random.Random(number)
        text = "".join(f"def f{draw.randrange(10**6)}(x):\n    return x + {draw.randrange(10**6)}\n\n" for _ in range(20))
        (folder / f"m{number}.py").write_text(text)
    return folder


def corpus_run(corpus: Path, steps: int = 6) -> RunConfig:
    """`steps` steps of the tiny model on `corpus`, with a tokenizer of 400 ids."""
    run = tiny_run(
        steps, model={"vocab_size": 512}, validation_tokens=200, checkpoint_every_steps=2, sample_prompts=("def f",), sample_tokens=4
    )
    build = BuildConfig(inputs=(f"code={corpus}",), vocab_size=400, validation_rate=0.2, near_duplicate=1.0)
    return RunConfig(name="tiny", model=run.model, data=DataConfig(sources={"code": 1.0}), build=build, train=run.train)


def steps(out: Path) -> list[int]:
    """Step numbers of the train lines of a run."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if row["kind"] == "train"]


def losses(out: Path) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step, exact: JSON holds the shortest form of a float."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss"], row["grad_norm"]) for row in rows if row["kind"] == "train"]


def interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Sends this process a signal just before the optimiser step after `step` steps."""
    real, calls = trainer.train_step, {"n": 0}

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls["n"] += 1
        if calls["n"] == step + 1:
            os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    monkeypatch.setattr(trainer, "train_step", counted)


def in_a_process(arguments: list[str], step: int, number: str) -> subprocess.CompletedProcess[str]:
    """`rorqual` in a process of its own, which gets a signal just before the optimiser step after `step` steps."""
    script = (
        "import sys, signal, pytest\nfrom tests.cli.tiny_corpus import interrupt_after, measure_quickly\nfrom rorqual.cli.main import main\n"
        f"measure_quickly(pytest.MonkeyPatch())\ninterrupt_after(pytest.MonkeyPatch(), {step}, signal.{number})\nsys.exit(main(sys.argv[1:]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, timeout=100)
