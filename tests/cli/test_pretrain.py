"""The verb: recipes and config files, overrides, resume, phases, usage errors, signals."""

from __future__ import annotations

import json
import shlex
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rorqual.cli.main import main
from rorqual.data.build import build
from rorqual.train.rundir import RunFolder, read_config
from tests.cli.tiny_corpus import corpus_run, in_a_process, interrupt_after, losses, measure_quickly, steps, write_corpus


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_quickly(monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(config.json, data folder)."""
    root = tmp_path_factory.mktemp("pretrain")
    run = corpus_run(write_corpus(root / "corpus"))
    with ThreadPoolExecutor(1) as executor:
        build(run.build, root / "data", executor=executor)
    (root / "config.json").write_text(run.to_json())
    return root / "config.json", root / "data"


def test_run_stop_resume_and_go_on(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, data = made
    out = tmp_path / "a run"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3, signal.SIGINT)
        assert main(["pretrain", str(config), "--data", str(data), "--out", str(out), "--train.aux-loss-alpha", "0.001"]) == 130
    printed = shlex.split(capsys.readouterr().err.rpartition("continue with: ")[2])
    assert printed == ["rorqual", "pretrain", "--out", str(out), "--data", str(data), "--resume"]
    assert steps(out) == [1, 2, 3] and read_config(out).train.aux_loss_alpha == 0.001
    assert main(["pretrain", str(config), "--data", str(data), "--out", str(out), "--resume"]) == 1
    assert "train.aux_loss_alpha was 0.001, now 0.0001" in capsys.readouterr().err
    with RunFolder(out):
        assert main(printed[1:]) == 1
    assert "is in use by another process" in capsys.readouterr().err and steps(out) == [1, 2, 3]
    assert main(printed[1:]) == 0
    assert steps(out) == [1, 2, 3, 4, 5, 6] and "bits per byte on" in capsys.readouterr().out
    assert main(["pretrain", str(config), "--data", str(data), "--out", str(out)]) == 1
    assert "already holds a run" in capsys.readouterr().err

    longer = tmp_path / "longer"
    phase = ["pretrain", "--init", str(out), "--data", str(data), "--out", str(longer), "--set", "train.sequence_length=32"]
    scaling = '{"factor": 2.0, "original_max_position_embeddings": 256}'
    assert main([*phase, "--set", f"model.rope_scaling={scaling}", "--train.micro-batch-sequences", "1"]) == 0
    (parent,) = json.loads((longer / "lineage.json").read_text())["parents"]
    assert parent["changes"]["train.sequence_length"] == [16, 32] and parent["changes"]["train.micro_batch_sequences"] == [2, 1]
    assert read_config(longer).model.rope_scaling.factor == 2.0  # type: ignore[union-attr]


@pytest.mark.slow
def test_sigterm_in_a_real_process(made: tuple[Path, Path], tmp_path: Path) -> None:
    """Exit code 143, and the run goes on from the step it stopped at, on real shards with FIM, as if it had not stopped (F31)."""
    config, data = made
    out = tmp_path / "run"
    done = in_a_process(["pretrain", str(config), "--data", str(data), "--out", str(out)], 3, "SIGTERM")
    assert done.returncode == 143, done.stderr
    assert steps(out) == [1, 2, 3]
    assert main(["pretrain", "--data", str(data), "--out", str(out), "--resume"]) == 0
    assert main(["pretrain", str(config), "--data", str(data), "--out", str(tmp_path / "straight")]) == 0
    assert steps(out) == [1, 2, 3, 4, 5, 6] and losses(out) == losses(tmp_path / "straight")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "name a recipe"),
        (["laptop", "stray"], 2, "unrecognized arguments: stray"),
        (["laptop", "--seed", "3"], 2, "unrecognized arguments: --seed"),
        (["laptop", "--resume", "--overwrite"], 2, "does not go with"),
        (["laptop", "--init-weights", "ema"], 2, "goes with --init"),
        (["laptopp"], 1, "recipe ('laptopp') is not known"),
        (["missing.json"], 1, "cannot read missing.json: No such file"),
        (["laptop"], 1, "no index.json"),
        (["laptop", "--set", "train.total_token=5"], 1, "did you mean train.total_tokens?"),
        (["laptop", "--set", "train.total_tokens"], 1, "must be FIELD=JSON"),
        (["laptop", "--set", "train.seed=-1"], 1, "train.seed (-1)"),
    ],
)
def test_bad_usage_is_refused_before_any_work(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        found = main(["pretrain", *arguments])
    except SystemExit as leaving:
        found = leaving.code
    assert found == code and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_lists_the_fields_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["pretrain", "laptop", "--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    assert "--resume" in text and "--train.total-tokens" in text and "--train.optimizer.weight-decay" in text


def test_what_cannot_fit_is_refused_before_anything_is_written(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, data = made
    monkeypatch.setattr("rorqual.cli.memory_check.available_memory", lambda device: 10**6)
    command = ["pretrain", str(config), "--data", str(data), "--out", str(tmp_path / "run")]
    assert main(command) == 1
    assert "start anyway with --ignore-memory" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert main([*command, "--ignore-memory", "--train.total-tokens", "32"]) == 0
