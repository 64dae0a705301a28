"""The whole recipe on a tiny corpus: killed, stopped, resumed, finished, left alone, started afresh; what it prints works."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path

import pytest

from rorqual.checkpoint import hf
from rorqual.cli.main import main
from rorqual.train.rundir import RunFolder
from tests.cli.tiny_corpus import corpus_run, in_a_process, interrupt_after, losses, measure_quickly, steps, write_corpus


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_quickly(monkeypatch)


def test_whole_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = corpus_run(write_corpus(tmp_path / "corpus"))
    (tmp_path / "recipe.json").write_text(run.with_({"train.seed": 8}).to_json())
    out = tmp_path / "runs" / "a tiny one"
    command = ["run", str(tmp_path / "recipe.json"), "--out", str(out), "--set", "train.seed=3"]
    killed = in_a_process(command, 3, "SIGKILL")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert steps(out) == [1, 2, 3] and not (out / "results.json").exists()
    fingerprint = json.loads((out / "data" / "index.json").read_text())["fingerprint"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2, signal.SIGTERM)  # from the checkpoint of step 2 on
        assert main(command) == 143
    assert steps(out) == [1, 2, 3, 4] and not (out / "results.json").exists()
    assert shlex.split(capsys.readouterr().err.rpartition("go on with: ")[2]) == ["rorqual", *command]

    assert main(command) == 0
    shown = capsys.readouterr().out
    assert f"report: {out / 'report.html'}" in shown
    printed = [shlex.split(line)[1:] for line in shown.partition("try next:\n")[2].splitlines()]
    assert [words[0] for words in printed] == ["generate", "inspect", "pretrain"]
    assert steps(out) == [1, 2, 3, 4, 5, 6]
    results = json.loads((out / "results.json").read_text())
    for key in (
        "validation_bpb",
        "gzip_bpb",
        "xz_bpb",
        "mtp_acceptance",
        "tokens_per_second",
        "share_of_ceiling",
        "seconds",
        "train_flops",
    ):
        assert results[key] > 0 or key == "mtp_acceptance", key
    assert results["parameters_total"] > results["parameters_active"] > 0
    assert (results["steps"], results["tokens"]) == (6, 6 * 64)
    assert [stage["name"] for stage in results["stages"]] == ["data", "pretrain", "export"]
    assert results["seconds"] == pytest.approx(sum(stage["seconds"] for stage in results["stages"]))
    assert results["data"]["fingerprint"] == fingerprint and results["data"]["epochs"]["code"] > 0
    assert (out / "hf" / "tokenizer.json").is_file() and "bits per byte" in (out / "report.html").read_text()

    model, loaded = hf.load(out / "hf")
    assert (loaded.skipped, loaded.missing, loaded.notices) == ([], [], []) and model.config == run.model
    whole = losses(out)

    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert main(command) == 0
    assert "finished and left alone" in (shown := capsys.readouterr().out)
    afresh = shlex.split(shown.partition("to start afresh: ")[2].splitlines()[0])[1:]
    assert afresh == [*command, "--overwrite"]
    assert main([*command, "--set", "train.seed=9"]) == 1
    assert "train.seed was 3, now 9" in capsys.readouterr().err
    assert main([*afresh, "--set", "build.split_rate=0.5"]) == 1
    assert "build.split_rate was 0.1, now 0.5" in capsys.readouterr().err
    with RunFolder(out):
        assert main(afresh) == 1
    assert "is in use by another process" in capsys.readouterr().err
    kept = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert {name for name in before if before[name] != kept[name]} <= {"stages.json"}

    for words, more in zip(printed, (["--max-new-tokens", "2"], [], ["--train.total-tokens", "128"]), strict=True):
        assert main([*words, *more]) == 0, capsys.readouterr().err
    assert steps(Path(f"{out}-longer")) == [1, 2]

    assert main(afresh) == 0
    again = json.loads((out / "results.json").read_text())
    assert again["data"]["fingerprint"] == fingerprint and again["stages"][0]["seconds"] >= results["stages"][0]["seconds"]
    assert losses(out) == whole and again["validation_bpb"] == results["validation_bpb"]


def test_folders_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused in one message before any work, and nothing that was there changes."""
    (tmp_path / "recipe.json").write_text(corpus_run(write_corpus(tmp_path / "corpus")).to_json())
    (tmp_path / "file").write_text("mine")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "deepseek_v3"}')
    for name, index in (("cut", "{"), ("list", "[]"), ("old", '{"format": 0}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.json").write_text(index)
    command = ["run", str(tmp_path / "recipe.json"), "--out"]
    for out, more, message in (
        ("file", [], "cannot use"),
        ("file/below", [], "cannot use"),
        ("model", ["--overwrite"], "it is no run and is not replaced"),
        ("new", ["--data", str(tmp_path / "cut")], "cannot be read as JSON"),
        ("new", ["--data", str(tmp_path / "list")], "has format 'list'"),
        ("new", ["--data", str(tmp_path / "old")], "has format 0"),
        ("new", ["--data", str(tmp_path / "file")], "is never overwritten"),
        ("new", ["--set", f'build.inputs=["{tmp_path}/nothing"]'], "does not exist"),
    ):
        assert main([*command, str(tmp_path / out), *more]) == 1
        assert message in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "model" / "config.json").read_text() == '{"model_type": "deepseek_v3"}'
    assert not {path.name for path in (tmp_path / "new").iterdir()} & {"config.json", "metrics.jsonl", "data"}


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["run", "laptop", "stray"])
    assert leaving.value.code == 2 and "stray" in capsys.readouterr().err
    assert main(["run", "nothing"]) == 1
    assert "recipe ('nothing') is not known" in capsys.readouterr().err
