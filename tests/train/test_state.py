"""Devices, weights given, names of what is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rorqual.checkpoint import resume
from rorqual.errors import CheckpointError, ConfigError, DeviceError
from rorqual.train.state import build, choose_device, load_weights
from tests.train.tiny_run import tiny_run

CPU = torch.device("cpu")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(tiny_run().train) == (CPU, torch.float32)
    assert choose_device(tiny_run(device="cpu", dtype="bfloat16").train) == (CPU, torch.bfloat16)
    with pytest.raises(DeviceError, match="sees no CUDA device"):
        choose_device(tiny_run(device="cuda:0").train)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(tiny_run().train) == (torch.device("cuda"), torch.bfloat16)


def test_names_are_official_and_expert_by_expert() -> None:
    state = build(tiny_run(), CPU, torch.float32)
    names = state.tensors().keys()
    for name in ("lm_head.weight", "model.layers.1.mlp.experts.3.down_proj.weight", "model.layers.0.mlp.gate.e_score_correction_bias"):
        assert name in names
    for prefix in ("optimizer.exp_avg.", "optimizer.exp_avg_sq.", "ema."):
        assert f"{prefix}model.layers.0.mlp.experts.0.gate_proj.weight" in names
        assert f"{prefix}model.layers.0.mlp.gate.e_score_correction_bias" not in names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    """Also from BF16 compute, whose checkpoint holds the FP32 masters, into FP32."""
    run = tiny_run()
    first = build(run, CPU, dtype)
    draw = torch.Generator().manual_seed(0)
    for tensor in first.tensors().values():
        tensor.copy_(torch.randn(tensor.shape, generator=draw))
    first.position.step, first.position.tokens, first.optimizer.updates = 7, 448, 6
    folder = first.save(tmp_path, run, "data")
    second = build(run, CPU, torch.float32)
    second.load(folder, "data")
    assert (second.position, second.optimizer.updates) == (first.position, 6)
    assert all(torch.equal(t, second.tensors()[name]) for name, t in first.tensors().items())
    third = build(run, CPU, torch.bfloat16)
    third.load(folder, "data")
    name = "model.embed_tokens.weight"
    assert torch.equal(third.optimizer.parameters[name], first.optimizer.master[name].bfloat16())
    with pytest.raises(CheckpointError, match="fingerprint data, the data folder given has other"):
        second.load(folder, "other")


def test_old_checkpoints_go_and_a_saved_step_is_kept(tmp_path: Path) -> None:
    run = tiny_run(keep_checkpoints=2)
    state = build(run, CPU, torch.float32)
    for step in (1, 2, 2, 3):
        state.position.step = step
        state.save(tmp_path, run, "data")
    assert resume.steps(tmp_path) == [2, 3]


def test_weights_that_do_not_fit() -> None:
    model = build(tiny_run(), CPU, torch.float32).model
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    load_weights(model, weights)
    with pytest.raises(ConfigError, match=r"lm_head\.weight \(1 tensors\)"):
        load_weights(model, {**weights, "lm_head.weight": torch.zeros(2, 2)})
    del weights["lm_head.weight"]
    with pytest.raises(ConfigError, match="missing"):
        load_weights(model, weights)
