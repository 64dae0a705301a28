"""The optimiser step (field cases F13-F16, F30) and the loop: resume (F31), stops, skipped steps, full disk, memory (F37)."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
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

import pytest
import torch
from torch import Tensor

from rorqual.checkpoint import resume
from rorqual.errors import CheckpointError, ConfigError, DataError, NonFiniteError, RunError
from rorqual.model.transformer import CausalLM
from rorqual.train import trainer
from rorqual.train.hyperparams import BatchSchedule, OptimizerConfig
from rorqual.train.loss import NO_TARGET, StepLoss
from rorqual.train.optim import AdamW
from rorqual.train.trainer import Batch, StepResult, train, train_step
from tests.tiny import t0
from tests.train.tiny_run import SHAPE, TinyData, tiny_run

STEPS = 12
TIMING = ("tokens_per_second", "share_of_ceiling", "seconds", "memory_bytes")


def a_model(seed: int = 0, **changes: Any) -> tuple[CausalLM, AdamW]:
    model = CausalLM(t0(**{"initializer_range": 0.02, **changes}))
    model.init_weights(seed)
    return model, AdamW(model.named_parameters(), OptimizerConfig())


def a_batch(rows: int = 4, length: int = 12, seed: int = 5) -> Batch:
    tokens = torch.randint(2, 256, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    return Batch(tokens[:, :-1].clone(), tokens[:, 1:].clone())


def step(model: CausalLM, optimizer: AdamW, batch: Batch, micro: int = 2, **changes: Any) -> StepResult:
    fields = {"learning_rate": 1e-3, "bias_update_speed": 0.1, "mtp_loss_weight": 0.3, "aux_loss_alpha": 1e-4}
    return train_step(model, optimizer, batch, micro_batch=micro, **{**fields, **changes})


def biases(model: CausalLM) -> Tensor:
    return torch.stack([bias for _, bias in model.router_biases()])


def digest(named: dict[str, Tensor]) -> str:
    out = hashlib.sha256()
    for name, tensor in sorted(named.items()):
        out.update(name.encode() + tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return out.hexdigest()


@pytest.fixture(autouse=True, scope="module")
def quiet_checkpoints() -> Iterator[None]:
    """The checkpoint library logs every tensor at debug level, which pytest would collect."""
    logging.disable(logging.DEBUG)
    yield
    logging.disable(logging.NOTSET)


# ---------------------------------------------------------------------- one optimiser step


def test_bias_moves_once_by_the_whole_step_s_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batch loads [3, 1] and [1, 7]: total [4, 8], mean 6, so the bias becomes [+0.1, -0.1] (F13)."""
    model, optimizer = a_model(
        n_routed_experts=2, n_group=1, topk_group=1, num_experts_per_tok=1, num_hidden_layers=2, num_nextn_predict_layers=0
    )
    loads = iter([torch.tensor([[3, 1]]), torch.tensor([[1, 7]])])
    zero = torch.zeros(())

    def loss(model: CausalLM, *_: Any, **__: Any) -> StepLoss:
        return StepLoss(model.head_weight.sum() * 0.0, zero, zero, zero, next(loads), (1,))

    monkeypatch.setattr(trainer, "compute_loss", loss)
    result = step(model, optimizer, a_batch(rows=4), micro=2)
    assert result.loads is not None and result.loads.tolist() == [[4, 8]]
    assert biases(model).tolist() == [[pytest.approx(0.1), pytest.approx(-0.1)]]


@pytest.mark.parametrize("micro", [1, 2, 3, 4])
def test_accumulation_changes_nothing(micro: int) -> None:
    """Loads and biases are identical whatever the micro-batch, parameters equal to rounding; evaluation in between moves nothing."""
    whole, parts = a_model(), a_model()
    for number in range(3):
        batch = a_batch(seed=number)
        one, many = step(*whole, batch, micro=4), step(*parts, batch, micro=micro)
        assert one.loads is not None and many.loads is not None
        assert one.loads.dtype == torch.int64 and torch.equal(one.loads, many.loads)
        # every real token goes to top-2 experts; the MTP module sees one token less per sequence
        assert one.loads.sum(1).tolist() == [4 * 12 * 2, 4 * 12 * 2, 4 * 11 * 2]
        assert one.loss == pytest.approx(many.loss, rel=1e-5) and one.mtp == pytest.approx(many.mtp, rel=1e-5)
        before = digest(parts[0].state_dict())
        with torch.no_grad():
            parts[0](batch.input_ids, mtp=True)
        assert digest(parts[0].state_dict()) == before
    assert torch.equal(biases(whole[0]), biases(parts[0]))
    for (name, a), (_, b) in zip(whole[0].named_parameters(), parts[0].named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_padding_is_not_counted() -> None:
    """Ten padding tokens more: loads, bias and loss of the unpadded step (F13)."""
    plain, padded = a_model(), a_model()
    batch = a_batch(rows=2, length=6)
    pad = torch.zeros(2, 5, dtype=torch.int64)
    mask = torch.cat([torch.ones(2, 6), torch.zeros(2, 5)], 1).bool()
    wide = Batch(torch.cat([batch.input_ids, pad], 1), torch.cat([batch.targets, pad + NO_TARGET], 1), token_mask=mask)
    one, two = step(*plain, batch), step(*padded, wide)
    assert one.loads is not None and two.loads is not None and torch.equal(one.loads, two.loads)
    assert torch.equal(biases(plain[0]), biases(padded[0]))
    assert one.num_targets == two.num_targets == 12 and one.loss == pytest.approx(two.loss, rel=1e-5)


@pytest.mark.parametrize("rows", [1, 2])
def test_starved_experts(rows: int) -> None:
    """Bias +10 on two experts of one group starves the rest: all finite, their gradients exactly zero, treated alike (F14)."""
    model, optimizer = a_model()
    for _, bias in model.router_biases():
        bias[:2] = 10.0
    dirty = [torch.full((8, 64, 64), float("nan")) for _ in range(20)]
    del dirty
    seen: dict[str, Tensor] = {}
    original = optimizer.step
    optimizer.step = lambda *a: (seen.update({n: g.clone() for n, g in optimizer.gradients().items()}), original(*a))[1]  # type: ignore[method-assign]
    for number in range(3):
        result = step(model, optimizer, a_batch(rows=rows, length=1 if rows == 1 else 2, seed=number), bias_update_speed=0.0)
        assert result.outcome == "updated"
    starved = seen["model.layers.1.mlp.experts.gate_up_proj.weight"][2:]
    assert torch.count_nonzero(starved) == 0
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_bias_is_out_of_the_optimiser_s_reach() -> None:
    """A hundred steps with weight decay 0.1 at gamma 0 leave FP32 biases to the bit, also in a BF16 model (F15)."""
    model, _ = a_model(**SHAPE)
    start = torch.randn(4, generator=torch.Generator().manual_seed(1))
    for _, bias in model.router_biases():
        bias.copy_(start)
    model.to(torch.bfloat16)
    optimizer = AdamW(model.named_parameters(), OptimizerConfig(weight_decay=0.1))
    assert not any("bias" in name for name in optimizer.parameters)
    for number in range(100):
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.01 * number)
        optimizer.accumulate()
        optimizer.step(1e-3, optimizer.gradient_norm())
        optimizer.zero_grad()
    assert step(model, optimizer, a_batch(rows=2, length=4), bias_update_speed=0.0).outcome == "updated"
    for _, bias in model.router_biases():
        assert bias.dtype == torch.float32 and torch.equal(bias, start)


def forced(hidden: Tensor, _weight: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Every token has log-probability -1."""
    count = (targets != NO_TARGET).sum().float()
    return hidden.sum() * 0.0 + count * scale, count


@pytest.mark.parametrize(("depth", "mtp", "total"), [(1, 0.875, 1.2625), (2, (7 / 8 + 6 / 8) / 2, 1.24375)])
def test_step_totals(monkeypatch: pytest.MonkeyPatch, depth: int, mtp: float, total: float) -> None:
    """T = 8, lambda 0.3 (F16)."""
    monkeypatch.setattr("rorqual.kernels.ops.linear_cross_entropy", forced)
    model, optimizer = a_model(num_nextn_predict_layers=depth)
    result = step(model, optimizer, a_batch(rows=1, length=8), aux_loss_alpha=0.0)
    assert (result.main, result.mtp, result.loss) == (1.0, pytest.approx(mtp), pytest.approx(total))


def test_step_totals_of_unequal_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches with 8 and 2 targets: N = 10, MTP (7 + 1) / 10, whatever the split (F16)."""
    monkeypatch.setattr("rorqual.kernels.ops.linear_cross_entropy", forced)
    batch = a_batch(rows=2, length=8)
    batch.targets[1, 2:] = NO_TARGET
    for micro in (1, 2):
        result = step(*a_model(), batch, micro=micro, aux_loss_alpha=0.0)
        assert (result.num_targets, result.main) == (10, pytest.approx(1.0))
        assert result.mtp == pytest.approx(0.8) and result.loss == pytest.approx(1.24)


def test_no_targets_no_update() -> None:
    """All labels masked: nothing changes, and the step says so; half of the micro-batches masked: the other half counts (F30)."""
    model, optimizer = a_model()
    batch = a_batch()
    before = digest(model.state_dict())
    masked = Batch(batch.input_ids, torch.full_like(batch.targets, NO_TARGET))
    result = step(model, optimizer, masked)
    assert (result.outcome, result.num_targets, result.loss) == ("no targets", 0, 0.0)
    assert digest(model.state_dict()) == before and optimizer.updates == 0
    batch.targets[2:] = NO_TARGET
    result = step(model, optimizer, batch)
    assert result.outcome == "updated" and result.num_targets == 24 and result.loss > 0


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_non_finite_step_touches_nothing(monkeypatch: pytest.MonkeyPatch, poison: str) -> None:
    model, optimizer = a_model()
    step(model, optimizer, a_batch())
    before, moments = digest(model.state_dict()), digest(optimizer.state())
    real = trainer.compute_loss

    def poisoned(*args: Any, **kwargs: Any) -> StepLoss:
        out = real(*args, **kwargs)
        factor = float("nan") if poison == "loss" else 1.0
        if poison == "gradient":
            out.loss.register_hook(lambda g: g * float("inf"))
        return StepLoss(out.loss * factor, out.main * factor, out.mtp, out.balance, out.loads, out.layers)

    monkeypatch.setattr(trainer, "compute_loss", poisoned)
    assert step(model, optimizer, a_batch(seed=9)).outcome == "non-finite"
    assert digest(model.state_dict()) == before and digest(optimizer.state()) == moments and optimizer.updates == 1
    assert all(p.grad is None for p in model.parameters())


def test_interrupted_between_micro_batches() -> None:
    model, optimizer = a_model()
    before = digest(model.state_dict())
    answers = iter([False, True])
    assert step(model, optimizer, a_batch(), interrupted=lambda: next(answers)).outcome == "interrupted"
    assert digest(model.state_dict()) == before and all(p.grad is None for p in model.parameters())


def test_bf16_step_follows_fp32() -> None:
    """The BF16 path (FP32 masters, router, head) on the CPU: the loss falls alongside the FP32 one."""
    run = tiny_run()
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        state = trainer.build(run, torch.device("cpu"), dtype)
        assert state.model.head_weight.dtype == state.model.model.layers[1].mlp.gate.weight.dtype == torch.float32
        assert state.model.model.embed_tokens.weight.dtype == dtype
        assert all(t.dtype == torch.float32 for t in state.weights().values())
        losses[dtype] = [step(state.model, state.optimizer, a_batch(seed=0), learning_rate=3e-3).loss for _ in range(8)]
    assert losses[torch.bfloat16][-1] < losses[torch.bfloat16][0] - 0.5
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=2e-2)


@pytest.mark.gpu
def test_gpu_step_follows_the_cpu() -> None:
    run = tiny_run()
    losses = {}
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        state = trainer.build(run, torch.device(device), dtype)
        losses[device] = [step(state.model, state.optimizer, a_batch(seed=0), learning_rate=3e-3).loss for _ in range(8)]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=3e-2)


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
        "import os, sys\nfrom pathlib import Path\nfrom rorqual.train.trainer import train\nfrom tests.train.tiny_run import SHAPE, TinyData, tiny_run\n"
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
    """Live tensors and file descriptors after step 9 and after step 25 are the same (F37)."""
    seen: dict[int, tuple[int, int]] = {}

    def count(state: Any, result: StepResult, samples: Any) -> None:
        if state.position.step in (9, 25):
            gc.collect()
            tensors = sum(1 for item in gc.get_objects() if issubclass(type(item), Tensor))
            seen[state.position.step] = tensors, len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0

    go(tiny_run(26, checkpoint_every_steps=8), tmp_path / "run", count)  # type: ignore[arg-type]
    assert seen[9] == seen[25]
