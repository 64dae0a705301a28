"""Training state: to the bit, in one process and in two, whole or not at all (field cases F06, F32)."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rorqual.checkpoint import resume
from rorqual.errors import CheckpointError
from rorqual.model.transformer import CausalLM
from tests.checkpoint.ranks import sharded, stacks
from tests.tiny import t0

ROOT = Path(__file__).parents[2]


def state(seed: int = 0) -> tuple[dict[str, Tensor], CausalLM]:
    """Parameters, BF16 moments, FP32 average and integer counters of T0, as a trainer holds them."""
    model = CausalLM(t0())
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    named = dict(model.named_parameters())
    for _, bias in model.router_biases():
        bias.uniform_(34.4, 34.6, generator=generator)
    tensors = resume.logical_tensors(model)
    for prefix, dtype in (("optimizer.exp_avg.", torch.bfloat16), ("optimizer.exp_avg_sq.", torch.float32), ("ema.", torch.float32)):
        tensors |= resume.split_experts(
            {prefix + name: torch.randn(value.shape, generator=generator).to(dtype) for name, value in named.items()}
        )
    tensors["counters"] = torch.tensor([2**53 + 1, -1])
    return tensors, model


def blank(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.full_like(value, -7) for name, value in tensors.items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def test_a_training_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    tensors, _ = state(0)
    kept = {
        "step": 7,
        "tokens": 2**40,
        "seed": 3,
        "fingerprint": "ab",
        "best": 0.1 + 0.2,
        "skipped": [1, 2],
        "nested": {"none": None, "yes": True},
    }
    folder = resume.save(resume.step_folder(tmp_path, 7), tensors, kept)
    assert folder == tmp_path / "step-00000007"
    other, model = state(1)
    assert not equal(other, tensors)
    assert resume.load(folder, other) == kept == resume.read_state(folder)
    assert equal(other, tensors)
    assert "model.layers.3.mlp.experts.7.gate_proj.weight" in tensors and "ema.model.layers.2.mlp.experts.0.down_proj.weight" in tensors
    # the views are the model's own memory: loading them loaded the model
    assert torch.equal(
        model.model.layers[3].mlp.experts.gate_up_proj.weight[7, :32], tensors["model.layers.3.mlp.experts.7.gate_proj.weight"]
    )
    assert all(bias.dtype == torch.float32 for _, bias in model.router_biases())


def test_parts_are_read_only_when_asked(tmp_path: Path) -> None:
    tensors, model = state()
    folder = resume.save(tmp_path / "x", tensors, {})
    weights = blank(resume.logical_tensors(model))
    with pytest.raises(CheckpointError, match="holds .*, which this run has no place for"):
        resume.load(folder, weights)
    resume.load(folder, weights, partial=True)
    assert all(torch.equal(value, tensors[name]) for name, value in weights.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(other=torch.zeros(1)), "lacks 'other'; it belongs to another model or optimiser"),
        (
            lambda t: t.update(counters=torch.zeros(3, dtype=torch.int64)),
            r"'counters' is torch.int64 \[2\], this run has torch.int64 \[3\]",
        ),
        (lambda t: t.update(counters=torch.zeros(2)), r"'counters' is torch.int64 \[2\], this run has torch.float32 \[2\]"),
        (lambda t: t.pop("counters"), "holds 'counters', which this run has no place for"),
    ],
)
def test_another_run_s_checkpoint_is_refused_before_a_byte_is_read(tmp_path: Path, change: Any, message: str) -> None:
    tensors, _ = state()
    folder = resume.save(tmp_path / "x", tensors, {})
    target = blank(tensors)
    change(target)
    before = {name: value.clone() for name, value in target.items()}
    with pytest.raises(CheckpointError, match=message):
        resume.load(folder, target)
    assert equal(before, target)


def test_empty_tensors_and_views_survive(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"empty": torch.zeros(0, 3), "column": whole[:, 1], "transposed": whole.T, "scalar": torch.tensor(5, dtype=torch.int64)}
    resume.save(tmp_path / "x", tensors, {})
    target = blank(tensors)
    resume.load(tmp_path / "x", target)
    assert equal(target, tensors)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": (1, 2)}, "state.a is a tuple"),
        ({"a": {3: 4}}, "state.a has the key 3"),
        ({"a": [torch.zeros(1)]}, r"state.a\[0\] is a Tensor"),
        ({"a": Path("x")}, "state.a is a"),
    ],
)
def test_state_that_json_would_change_is_refused(tmp_path: Path, value: dict[str, Any], message: str) -> None:
    for save in (resume.save, resume.async_save):
        with pytest.raises(CheckpointError, match=message):
            save(tmp_path / "x", {"a": torch.zeros(1)}, value)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- many checkpoints


def test_latest_steps_and_pruning(tmp_path: Path) -> None:
    assert resume.latest(tmp_path / "none") is None and resume.steps(tmp_path) == [] and resume.latest(tmp_path) is None
    for step in (3, 20, 100, 123456789):
        resume.save(resume.step_folder(tmp_path, step), {"a": torch.tensor(step)}, {"step": step})
    (tmp_path / "step-00000999").mkdir()  # no index: not a checkpoint
    (tmp_path / ".step-00000500.partial").mkdir()
    (tmp_path / ".step-200000000.partial").mkdir()  # perhaps being written at this moment
    (tmp_path / "notes").mkdir()
    assert resume.steps(tmp_path) == [3, 20, 100, 123456789]
    newest = resume.latest(tmp_path)
    assert newest == tmp_path / "step-123456789" and resume.read_state(newest) == {"step": 123456789}
    gone = resume.prune(tmp_path, 2)
    assert {path.name for path in gone} == {"step-00000003", "step-00000020", ".step-00000500.partial"}
    assert resume.steps(tmp_path) == [100, 123456789] and (tmp_path / "notes").exists() and (tmp_path / ".step-200000000.partial").exists()
    with pytest.raises(CheckpointError, match="keep"):
        resume.prune(tmp_path, 0)


def test_a_checkpoint_is_replaced_only_when_asked(tmp_path: Path) -> None:
    resume.save(tmp_path / "x", {"a": torch.tensor(1.0)}, {"step": 1})
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        resume.save(tmp_path / "x", {"a": torch.tensor(2.0)}, {"step": 2})
    assert resume.read_state(tmp_path / "x") == {"step": 1}
    resume.save(tmp_path / "x", {"a": torch.tensor(2.0)}, {"step": 2}, replace=True)
    assert resume.read_state(tmp_path / "x") == {"step": 2} and [path.name for path in tmp_path.iterdir()] == ["x"]


def test_saving_in_the_background_takes_the_values_of_now(tmp_path: Path) -> None:
    tensors, _ = state()
    expected = {name: value.clone() for name, value in tensors.items()}
    future = resume.async_save(tmp_path / "x", tensors, {"step": 1})
    for value in tensors.values():
        value.zero_()  # training goes on
    assert future.result(timeout=60) == tmp_path / "x"
    target = blank(expected)
    resume.load(tmp_path / "x", target)
    assert equal(target, expected)
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        resume.async_save(tmp_path / "x", tensors, {}).result(timeout=60)


# ---------------------------------------------------------------------- a disk that fails, a process that dies


def test_a_file_size_limit_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    tensors, _ = state()
    good = resume.save(resume.step_folder(tmp_path, 1), tensors, {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # a real error of the system, in the middle of the data
    try:
        with pytest.raises(CheckpointError, match=r"could not write .*step-00000002: File too large; .*earlier checkpoints are intact"):
            resume.save(resume.step_folder(tmp_path, 2), tensors, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    target = blank(tensors)
    assert resume.load(good, target) == {"step": 1} and equal(target, tensors)


def test_a_full_disk_at_any_write_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"a": torch.arange(10.0), "b": torch.arange(3)}
    good = resume.save(resume.step_folder(tmp_path, 1), tensors, {"step": 1})
    for target in (
        "rorqual.checkpoint.tensors.write_file",
        "pathlib.Path.write_text",
        "rorqual.checkpoint.folder.sync",
        "pathlib.Path.rename",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, full)
            with pytest.raises(CheckpointError, match=r"could not write .*No space left on device; .*earlier checkpoints are intact"):
                resume.save(resume.step_folder(tmp_path, 2), tensors, {"step": 2})
        assert resume.latest(tmp_path) == good and [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 10}))
    with pytest.raises(CheckpointError, match="GB are needed; earlier checkpoints are intact"):
        resume.save(resume.step_folder(tmp_path, 2), tensors, {"step": 2})


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_an_interrupt_stays_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rorqual.checkpoint.tensors.write_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        resume.save(tmp_path / "x", {"a": torch.zeros(1)}, {})
    assert list(tmp_path.iterdir()) == []


def test_pruning_that_was_cut_short_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        resume.save(resume.step_folder(tmp_path, step), {"a": torch.tensor(step)}, {})
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", full)
        with pytest.raises(OSError):
            resume.prune(tmp_path, 2)
    assert resume.steps(tmp_path) == [2, 3] and len(list(tmp_path.iterdir())) == 3
    resume.prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_a_process_killed_while_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from rorqual.checkpoint import resume\n"
        "root, step = Path(sys.argv[1]), 0\n"
        "while True:\n"
        "    step += 1\n"
        "    resume.save(resume.step_folder(root, step), {'a': torch.full((300_000,), float(step))}, {'step': step})\n"
        "    resume.prune(root, 2)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while len(resume.steps(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.037)
    process.kill()
    process.wait()
    newest = resume.latest(tmp_path)
    assert newest is not None
    target = {"a": torch.zeros(300_000)}
    step = resume.load(newest, target)["step"]
    assert bool((target["a"] == step).all())
    resume.save(resume.step_folder(tmp_path, step + 1), target, {"step": step + 1})
    resume.prune(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == [f"step-{step + 1:08d}"]


# ---------------------------------------------------------------------- several ranks


def whole() -> dict[str, Tensor]:
    return resume.split_experts(stacks(range(8))) | {"shared": torch.arange(5.0), "rows": sharded()}


@pytest.mark.dist
def test_two_ranks_and_one_process_read_each_other(tmp_path: Path) -> None:
    """Expert-parallel halves, a tensor cut by rows, a replicated one; then a rank with a full disk (ranks.py has the other half)."""
    resume.save(resume.step_folder(tmp_path, 1), whole(), {"step": 1})
    command = [sys.executable, "-m", "tests.checkpoint.ranks", "2", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    folder = resume.step_folder(tmp_path, 3)
    assert resume.steps(tmp_path) == [1, 3] and not list(tmp_path.glob(".step*"))
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "shard-00000.safetensors", "shard-00001.safetensors"]
    target = blank(whole())
    assert resume.load(folder, target) == {"step": 3} and equal(target, whole())
    assert [target[f"model.layers.1.mlp.experts.{e}.up_proj.weight"][0, 0].item() for e in range(8)] == list(range(8))
