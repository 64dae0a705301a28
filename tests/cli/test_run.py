"""The whole recipe on a tiny corpus: stopped, resumed, finished, left alone, started afresh."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from rorqual.cli.main import main
from tests.cli.tiny_corpus import corpus_run, interrupt_after, steps, write_corpus


def test_whole_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = corpus_run(write_corpus(tmp_path / "corpus"))
    (tmp_path / "recipe.json").write_text(run.to_json())
    out = tmp_path / "runs" / "tiny"
    command = ["run", str(tmp_path / "recipe.json"), "--out", str(out)]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3, signal.SIGTERM)
        assert main(command) == 143
    assert steps(out) == [1, 2, 3] and not (out / "results.json").exists()
    fingerprint = json.loads((out / "data" / "index.json").read_text())["fingerprint"]
    capsys.readouterr()

    assert main(command) == 0
    shown = capsys.readouterr().out
    assert f"report: {out / 'report.html'}" in shown
    assert [line.split()[1] for line in shown.partition("try next:\n")[2].splitlines()] == ["generate", "inspect", "pretrain"]
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

    before = (out / "results.json").read_text()
    assert main(command) == 0
    assert "finished and left alone" in (shown := capsys.readouterr().out) and "--overwrite" in shown
    assert (out / "results.json").read_text() == before
    assert main([*command, "--set", "train.seed=9"]) == 1
    assert "train.seed was 3, now 9" in capsys.readouterr().err
    assert main([*command, "--set", "build.split_rate=0.5", "--overwrite"]) == 1
    assert "build.split_rate was 0.1, now 0.5" in capsys.readouterr().err

    assert main([*command, "--set", "train.seed=9", "--overwrite"]) == 0
    again = json.loads((out / "results.json").read_text())
    assert again["data"]["fingerprint"] == fingerprint and again["validation_bpb"] != results["validation_bpb"]


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["run", "laptop", "stray"])
    assert leaving.value.code == 2 and "stray" in capsys.readouterr().err
    assert main(["run", "nothing"]) == 1
    assert "recipe ('nothing') is not known" in capsys.readouterr().err
