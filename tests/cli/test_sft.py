"""`rorqual sft`: what is shown, what is written, that other verbs take it, and refusals before any work."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rorqual.cli.main import main
from rorqual.errors import DeviceError
from tests.posttrain.tiny_chat import talk, write_model, write_talks


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli-sft")
    write_model(root)
    write_talks(root / "talks.jsonl")
    return root


def argv(place: Path, *more: object) -> list[str]:
    return ["sft", "--model", str(place / "model"), "--data", str(place / "talks.jsonl"), *map(str, more)]


SHORT = ("--lr", "1e-3", "--batch", "4", "--max-tokens", "32", "--device", "cpu")


def test_show_prints_what_is_learned_and_trains_nothing(place, capsys):
    assert main(argv(place, "--show", 2)) == 0
    out = capsys.readouterr().out
    assert out.startswith("line 1: ") and "<｜Assistant｜><think>\n[one and 0\n</think>\n\n0 <｜end▁of▁sentence｜>]" in out
    assert out.count("line ") == 2 and "0?<｜Assistant｜>" in out


def test_a_run_gives_a_folder_that_generate_chat_and_export_take(place, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert main(argv(place, "--out", out, *SHORT)) == 0
    printed = capsys.readouterr()
    assert "24 samples of 24 lines" in printed.out and "finished: " in printed.out and "memory for fine-tuning on cpu" in printed.err
    assert main(["generate", str(out), "the whale", "--max-new-tokens", "4", "--temperature", "0"]) == 0
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n"))
    assert main(["chat", str(out), "--max-new-tokens", "4"]) == 0
    assert main(["export", str(out), str(tmp_path / "half"), "--to", "bf16"]) == 0
    assert (tmp_path / "half" / "chat_template.jinja").is_file()
    assert main(["sft", "--model", str(out), "--data", str(place / "talks.jsonl"), "--out", str(tmp_path / "second"), *SHORT]) == 0


@pytest.mark.parametrize("weights", [None, pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_run_with_an_adapter_is_merged_on_export_and_when_it_is_used(place, tmp_path, capsys, weights):
    out = tmp_path / "out"
    more = ("--weights", weights) if weights else ()
    assert main(argv(place, "--out", out, *SHORT, "--lora", 4, "--lora-targets", "attention,ffn,experts", *more)) == 0
    assert (out / "adapter" / "adapter_config.json").is_file() and not (out / "hf").exists()
    assert main(["export", str(out), str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged" / "chat_template.jinja").is_file()
    capsys.readouterr()
    texts = []
    for folder in (out, tmp_path / "merged", place / "model"):
        assert main(["generate", str(folder), "one", "--max-new-tokens", "12", "--temperature", "0"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_an_unfinished_run_says_so(place, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(argv(place, "--out", out, *SHORT)) == 0
    shutil.rmtree(out / "hf")
    capsys.readouterr()
    for verb in (["generate", str(out), "x"], ["export", str(out), str(tmp_path / "o")]):
        assert main(verb) == 1
        assert f"has not finished; go on with: rorqual sft --out {out} --resume" in capsys.readouterr().err
    assert main(["sft", "--out", str(out), "--resume"]) == 0 and (out / "hf").is_dir()


def test_bad_lines_are_counted_and_listed(place, tmp_path, capsys):
    data = tmp_path / "x.jsonl"
    data.write_bytes(json.dumps(talk(1)).encode() + b"\n\xff\n{}\n")
    assert main(["sft", "--model", str(place / "model"), "--data", str(data), "--out", str(tmp_path / "out"), *SHORT]) == 0
    out = capsys.readouterr().out
    assert "1 samples of 3 lines" in out and "left out 1: not UTF-8 (line 2)" in out and "left out 1: no list of messages (line 3)" in out
    assert len((tmp_path / "out" / "samples" / "rejected.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_signal_saves_and_resume_finishes(place, tmp_path):
    script = (
        "import sys, signal, pytest\nfrom rorqual.posttrain import sft\nfrom rorqual.cli.main import main\nreal, n = sft.train_step, [0]\n"
        "def step(*a, **k):\n    n[0] += 1\n    if n[0] == 3: signal.raise_signal(signal.SIGINT)\n    return real(*a, **k)\n"
        "sft.train_step = step\nsys.exit(main(sys.argv[1:]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", script, *argv(place, "--out", out, *SHORT)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 128 + signal.SIGINT and f"continue with: rorqual sft --out {out} --resume" in done.stderr
    assert main(["sft", "--out", str(out), "--resume"]) == 0 and (out / "hf" / "config.json").is_file()


def test_what_cannot_be_is_refused_before_any_work(place, tmp_path, capsys, monkeypatch):
    for more, told in (
        (("--out", tmp_path / "a", "--max-tokens", 100000), "max_position_embeddings (256)"),
        (("--out", tmp_path / "a", "--lora-alpha", 2), "--lora-alpha goes with --lora"),
        (("--out", tmp_path / "a", "--epochs", 0), "epochs (0)"),
    ):
        assert main(argv(place, *more)) == 1 and told in capsys.readouterr().err
    assert main(["sft", "--model", str(place / "model"), "--data", str(tmp_path / "absent"), "--out", str(tmp_path / "a")]) == 1
    assert "cannot read" in capsys.readouterr().err
    for usage in (["sft"], argv(place), ["sft", "--out", "x"], argv(place, "--out", "x", "--resume", "--overwrite")):
        with pytest.raises(SystemExit):
            main(usage)
    monkeypatch.setattr("rorqual.cli.memory_check.available_memory", lambda _device: 1000)
    with pytest.raises(DeviceError, match="--ignore-memory"):
        from rorqual.cli import sft

        sft.main(argv(place, "--out", tmp_path / "b", *SHORT)[1:])
    assert not (tmp_path / "b").exists()
