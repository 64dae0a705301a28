"""The training loop: resume (field case F31), stops, skipped steps, full disk, memory (F37)."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from torch import Tensor

from rorqual.checkpoint import resume
from rorqual.errors import CheckpointError, ConfigError, DataError, NonFiniteError, RunError
from rorqual.train import trainer
from rorqual.train.hyperparams import BatchSchedule, OptimizerConfig
from rorqual.train.loss import StepLoss
from rorqual.train.trainer import StepResult, train
from tests.tiny import t0
from tests.train.tiny_run import TinyData, digest, tiny_run

STEPS = 12
TIMING = ("tokens_per_second", "share_of_ceiling", "seconds", "memory_bytes")


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Hundreds of steps run here: no shape checks at every call (model tests have them), no debug log of every tensor saved."""
    logging.disable(logging.DEBUG)
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
    logging.disable(logging.NOTSET)


# ---------------------------------------------------------------------- the loop


class Trace:
    """What each step did: documents, loss to the bit, hash of every parameter; can send a signal or raise after a step."""

    def __init__(self, stop_at: int | None = None, crash_at: int | None = None) -> None:
        self.steps: dict[int, tuple[Any, str, str]] = {}
        self.stop_at, self.crash_at = stop_at, crash_at

    def __call__(self, state: Any, result: StepResult, samples: Any) -> None:
        at = state.position.step
        self.steps[at] = (samples.documents, result.loss.hex(), digest(state.weights()))
        self.end = digest(state.tensors())
        if at == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        if at == self.crash_at:
            raise RuntimeError("crash")


def go(run: Any, out: Path, trace: Trace | None = None, data: Any = None, **kwargs: Any) -> Any:
    return train(run, out, data=data or TinyData(), progress=False, ceiling_gflops=50.0, on_step=trace, **kwargs)


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def timeless(out: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMING} for row in records(out) if row["kind"] != "event"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trace]:
    out, trace = tmp_path_factory.mktemp("straight") / "run", Trace()
    result = go(tiny_run(STEPS), out, trace)
    assert (result.step, result.signal) == (STEPS, None) and len(trace.steps) == STEPS
    return out, trace


def interrupt_and_compare(run: Any, out: Path, whole: Trace, folder: Path, stops: tuple[int, ...]) -> None:
    steps: dict[int, Any] = {}
    for index, stop in enumerate(stops):
        trace = Trace(stop_at=stop)
        assert go(run, folder, trace, resume_run=index > 0).signal == signal.SIGINT
        steps.update(trace.steps)
    last = Trace()
    assert go(run, folder, last, resume_run=True).signal is None
    assert min(last.steps) == stops[-1] + 1
    assert {**steps, **last.steps} == whole.steps and last.end == whole.end
    assert timeless(folder) == timeless(out)


@pytest.mark.parametrize("stops", [(1,), (7, 9)])
def test_resume_is_exact(straight: tuple[Path, Trace], tmp_path: Path, stops: tuple[int, ...]) -> None:
    """Stopped by a signal and resumed, once or twice: documents, losses, parameters, moments, average, metrics to the bit (F31)."""
    interrupt_and_compare(tiny_run(STEPS), *straight, tmp_path / "run", stops)


@pytest.mark.slow
@pytest.mark.parametrize("moments", ["fp32", "bf16"])
def test_resume_is_exact_on_t0(tmp_path: Path, moments: str) -> None:
    """Forty steps of T0 with a growing batch, stopped at steps 1, 7 and 20, and twice in a row (F31)."""
    optimizer = OptimizerConfig(moments=moments)  # type: ignore[arg-type]
    run = tiny_run(40, optimizer=optimizer, batch=BatchSchedule(start=2, end=6, ramp_tokens=1000), ema_decay=0.95)
    run = dataclasses.replace(run, model=t0(initializer_range=0.02))
    whole = Trace()
    go(run, tmp_path / "whole", whole)
    for stops in ((1,), (7,), (20,), (20, 21)):
        interrupt_and_compare(run, tmp_path / "whole", whole, tmp_path / f"stopped-{stops}", stops)


def test_crash_loses_only_the_steps_since_the_checkpoint(straight: tuple[Path, Trace], tmp_path: Path) -> None:
    out, whole = straight
    with pytest.raises(RuntimeError, match="crash"):
        go(tiny_run(STEPS), tmp_path / "run", Trace(crash_at=9))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 10, "lo')  # what a kill in the middle of a write leaves
    last = Trace()
    go(tiny_run(STEPS), tmp_path / "run", last, resume_run=True)
    assert min(last.steps) == 6 and last.end == whole.end
    assert timeless(tmp_path / "run") == timeless(out)


def test_crash_before_the_first_checkpoint(straight: tuple[Path, Trace], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="crash"):
        go(tiny_run(STEPS), tmp_path / "run", Trace(crash_at=2))
    last = Trace()
    go(tiny_run(STEPS), tmp_path / "run", last, resume_run=True)
    assert last.steps == straight[1].steps and timeless(tmp_path / "run") == timeless(straight[0])


def test_finished_run_is_left_alone(straight: tuple[Path, Trace], tmp_path: Path) -> None:
    out = straight[0]
    before = timeless(out)
    trace = Trace()
    result = go(tiny_run(STEPS), out, trace, resume_run=True)
    assert result.step == STEPS and not trace.steps and timeless(out) == before
    assert [record["weights"] for record in result.final] == ["ema", "raw"]


def test_metrics_have_what_the_report_reads(straight: tuple[Path, Trace]) -> None:
    train_rows = [row for row in records(straight[0]) if row["kind"] == "train"]
    assert [row["step"] for row in train_rows] == list(range(1, STEPS + 1))
    row = train_rows[10]
    for key in ("tokens", "sequences", "loss", "main_loss", "mtp_loss", "balance_loss", "lr", "grad_norm", "batch_size", "bias_update_speed",
                "mtp_loss_weight", "tokens_per_second", "share_of_ceiling", "memory_bytes", "skipped_steps", "seconds"):  # fmt: skip
        assert isinstance(row[key], (int, float)), key
    assert len(row["max_vio"]) == len(row["bias_min"]) == len(row["bias_max"]) == len(row["load"]) == 2
    assert row["loss"] == pytest.approx(row["main_loss"] + row["mtp_loss_weight"] * row["mtp_loss"] + row["balance_loss"], rel=1e-6)
    assert train_rows[-1]["loss"] < train_rows[0]["loss"]
    assert [r["mtp_loss_weight"] for r in train_rows] == [0.3] * 9 + [0.1] * 3  # lambda's threshold at 10/14.8 of the tokens
    assert [r["bias_update_speed"] for r in train_rows][-3:] == [0.001, 0.0, 0.0]
    validation = [row for row in records(straight[0]) if row["kind"] == "validation"]
    assert [row["step"] for row in validation] == [4, 8, 12, 12]
    assert all(0 <= row["mtp_acceptance"] <= 1 and row["bpb"] > 0 for row in validation)


def test_changed_configuration_is_named(straight: tuple[Path, Trace]) -> None:
    with pytest.raises(ConfigError, match=r"train\.seed was 3, now 4"):
        go(tiny_run(STEPS, seed=4), straight[0], resume_run=True)
    with pytest.raises(CheckpointError, match="other-data"):
        go(tiny_run(STEPS), straight[0], data=TinyData(fingerprint="other-data"), resume_run=True)


def test_run_folder_is_not_overwritten(tmp_path: Path) -> None:
    run = tiny_run(2)
    go(run, tmp_path / "run")
    kept = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(RunError, match="already holds a run"):
        go(run, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == kept
    go(run, tmp_path / "run", overwrite=True)
    assert [row["step"] for row in records(tmp_path / "run") if row["kind"] == "train"] == [1, 2]
    with pytest.raises(RunError, match="not a run folder"):
        go(run, tmp_path / "nothing", resume_run=True)


def test_data_that_the_model_cannot_take(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="vocab_size"):
        go(tiny_run(), tmp_path / "run", data=TinyData(vocab_size=300))
    with pytest.raises(ConfigError, match="device"):
        tiny_run(device="tpu")
    assert not (tmp_path / "run").exists()


def test_skipped_steps_are_counted_and_stop_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Step 3 is skipped and training goes on; from step 8 on all are, and after three in a row the run stops, checkpoint intact."""
    real = trainer.compute_loss
    calls = {"n": 0}

    def loss(*args: Any, **kwargs: Any) -> StepLoss:
        calls["n"] += 1
        out = real(*args, **kwargs)
        at = (calls["n"] + 1) // 2  # two micro-batches a step
        return StepLoss(out.loss * float("nan"), out.main, out.mtp, out.balance, out.loads, out.layers) if at == 3 or at >= 8 else out

    monkeypatch.setattr(trainer, "compute_loss", loss)
    run = tiny_run(12, max_skipped_in_a_row=3)
    trace = Trace()
    with pytest.raises(NonFiniteError, match="3 steps in a row, up to step 10"):
        go(run, tmp_path / "run", trace)
    rows = [row for row in records(tmp_path / "run") if row["kind"] == "train"]
    assert [row["outcome"] for row in rows] == ["updated"] * 2 + ["non-finite"] + ["updated"] * 4 + ["non-finite"] * 3
    assert rows[2]["loss"] is None and [row["skipped_steps"] for row in rows] == [0, 0, 1, 1, 1, 1, 1, 2, 3, 4]
    assert trace.steps[2][2] == trace.steps[3][2] != trace.steps[4][2]
    assert resume.steps(tmp_path / "run" / "checkpoints") == [5]
    monkeypatch.setattr(trainer, "compute_loss", real)
    assert go(run, tmp_path / "run", resume_run=True).step == 12


def test_full_disk_leaves_the_last_checkpoint(straight: tuple[Path, Trace], tmp_path: Path) -> None:
    """A file-size limit plays the full disk: the save at step 10 fails with an error of ours, step 5's is whole, and resuming works."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Shrinking(Trace):
        def __call__(self, state: Any, result: StepResult, samples: Any) -> None:
            super().__call__(state, result, samples)
            if state.position.step == 9:
                resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(CheckpointError, match="earlier checkpoints are intact"):
            go(tiny_run(STEPS), tmp_path / "run", Shrinking())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert resume.steps(tmp_path / "run" / "checkpoints") == [5]
    last = Trace()
    go(tiny_run(STEPS), tmp_path / "run", last, resume_run=True)
    assert last.end == straight[1].end


def test_killed_process_resumes_to_the_bit(straight: tuple[Path, Trace], tmp_path: Path) -> None:
    """A real process, killed with SIGKILL after step 8: the steps since step 5's checkpoint are made again."""
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom rorqual.train.trainer import train\nfrom tests.train.tiny_run import digest, SHAPE, TinyData, tiny_run\n"
        "def on_step(state, result, samples):\n"
        "    if state.position.step == 8: os.kill(os.getpid(), 9)\n"
        "train(tiny_run(12), Path(sys.argv[1]), data=TinyData(), progress=False, ceiling_gflops=50.0, on_step=on_step)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    last = Trace()
    go(tiny_run(STEPS), tmp_path / "run", last, resume_run=True)
    assert min(last.steps) == 6
    assert last.end == straight[1].end and timeless(tmp_path / "run") == timeless(straight[0])


def test_memory_is_flat(tmp_path: Path) -> None:
    """Live tensors and file descriptors after step 5 and after step 13 are the same (F37)."""
    seen: dict[int, tuple[int, int]] = {}

    def count(state: Any, result: StepResult, samples: Any) -> None:
        if state.position.step in (5, 13):
            gc.collect()
            tensors = sum(1 for item in gc.get_objects() if issubclass(type(item), Tensor))
            seen[state.position.step] = tensors, len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0

    go(tiny_run(14, checkpoint_every_steps=4), tmp_path / "run", count)  # type: ignore[arg-type]
    assert seen[5] == seen[13]
