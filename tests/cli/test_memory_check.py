"""The memory estimate that verbs print, and the refusal of what cannot fit."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from rorqual.cli import memory_check
from rorqual.cli.main import main
from rorqual.cli.memory_check import add_option, available_memory, beside, check_folder, check_memory, check_models, check_run
from rorqual.errors import DeviceError
from rorqual.planner.estimate import MARGIN, PROGRAM, Estimate
from rorqual.recipes.laptop import laptop
from tests.posttrain.tiny_chat import write_model
from tests.tiny import t0

ESTIMATE = Estimate("training", {"weights": 1e9, "activations": 3e9})


def test_what_fits_is_printed_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    check_memory(ESTIMATE, 8e9)
    need = 4e9 * (1 + MARGIN) + PROGRAM
    assert capsys.readouterr().err == f"memory for training: about {need / 1e9:.4g} GB (activations 3 GB, weights 1 GB); 8 GB are free\n"
    check_memory(ESTIMATE, None)
    assert "free" not in capsys.readouterr().err


def test_what_does_not_fit_is_refused_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        DeviceError, match=r"needs about 4\.6 GB of memory and 2 GB are free; the largest part is activations \(3 GB\).*--ignore-memory"
    ):
        check_memory(ESTIMATE, 2e9)
    check_memory(ESTIMATE, 2e9, force=True)
    assert "memory for training" in capsys.readouterr().err


def test_the_option_and_the_machine() -> None:
    parser = argparse.ArgumentParser()
    add_option(parser)
    assert parser.parse_args([]).ignore_memory is False and parser.parse_args(["--ignore-memory"]).ignore_memory
    free = available_memory("cpu")
    assert free is None or free > 0


def test_a_run_is_checked_before_it_starts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = laptop()
    check_run(run)
    shown = capsys.readouterr().err
    assert "memory for training on " in shown and "activations" in shown
    monkeypatch.setattr(memory_check, "available_memory", lambda device: 10**8)
    with pytest.raises(DeviceError, match="smaller micro-batch|BF16"):
        check_run(run)
    check_run(run, force=True)


def test_a_folder_is_checked_before_it_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"sequences": 4, "batched_tokens": 64}
    check_folder(tmp_path, **settings)  # no config.json: the loader says what is wrong
    assert capsys.readouterr().err == ""
    (tmp_path / "config.json").write_text(json.dumps(t0().to_hf()))
    check_folder(tmp_path, "bf16", **settings)
    assert "memory for serving: about" in capsys.readouterr().err
    monkeypatch.setattr(memory_check, "available_memory", lambda device: 10**6)
    with pytest.raises(DeviceError, match="serving needs about"):
        check_folder(tmp_path, "fp32", **settings)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text(laptop().to_json())
    check_folder(run, force=True, **settings)
    assert "weights 10.93 MB" in capsys.readouterr().err


def test_models_that_stand_side_by_side_are_summed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(t0().to_hf()))
    check_models([tmp_path / "nothing"], "distillation")
    assert capsys.readouterr().err == ""
    sizes = []
    for folders in ([tmp_path], [tmp_path, tmp_path, tmp_path / "nothing"]):
        monkeypatch.setattr(memory_check, "check_memory", lambda estimate, free, force: sizes.append(estimate))
        check_models(folders, "distillation", weights="fp32")
    assert sizes[0].what == "distillation" and sizes[1].parts == {name: 2 * size for name, size in sizes[0].parts.items()}
    found = beside(ESTIMATE, "reward model", tmp_path)
    assert found.tensors > ESTIMATE.tensors + 4e5 and set(found.parts) == {"weights", "activations", "reward model"}
    assert beside(ESTIMATE, "reward model", tmp_path / "nothing") is ESTIMATE


def test_what_cannot_fit_is_refused_by_the_verbs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path, num_hidden_layers=1)
    monkeypatch.setattr(memory_check, "available_memory", lambda device: 10**6)
    data, problems = tmp_path / "pairs.jsonl", tmp_path / "problems.jsonl"
    data.write_text(json.dumps({"prompt": "1?", "chosen": "one", "rejected": "two"}) + "\n")
    problems.write_text(json.dumps({"prompt": "1?", "answer": "1"}) + "\n")
    assert main(["reward-model", "--model", str(model), "--data", str(data), "--out", str(tmp_path / "r")]) == 1
    assert "training a reward model on cpu needs about" in capsys.readouterr().err and not (tmp_path / "r" / "config.json").exists()
    assert main(["reward-model", "--model", str(model), "--data", str(data), "--out", str(tmp_path / "r"), "--judge", str(model)]) == 1
    assert "judging needs about" in capsys.readouterr().err
    assert main(["distill", "--teacher", str(model), "--problems", str(problems), "--out", str(tmp_path / "d")]) == 1
    assert "distillation needs about" in capsys.readouterr().err
