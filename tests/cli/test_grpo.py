"""`rorqual grpo`: formulas, a run that other verbs take, resumption, refusals before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rorqual.cli.main import main
from rorqual.kernels import native
from tests.posttrain.tiny_chat import write_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli-grpo")
    write_model(root)
    lines = [{"prompt": f"say {n}", "answer": str(n), "kind": "exact"} for n in range(6)]
    (root / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{\n")
    return root


def argv(place: Path, *more: object) -> list[str]:
    return ["grpo", "--model", str(place / "model"), "--data", str(place / "q.jsonl"), "--device", "cpu", *map(str, more)]


SHORT = ("--steps", 2, "--prompts", 2, "--group", 3, "--max-new-tokens", 6, "--reward", "language", "--style", "v3")


def test_every_preset_prints_its_formula(capsys):
    from rorqual.cli.grpo import _PRESETS
    from rorqual.posttrain.presets import presets

    assert set(_PRESETS) == set(presets())
    for name in _PRESETS:
        assert main(["grpo", "--preset", name, "--formula"]) == 0
        assert capsys.readouterr().out.startswith("J = ")
    assert main(["grpo", "--preset", "r1", "--formula", "--prompts", "16", "--kl", "0.5", "--reward", "accuracy,length=0.1"]) == 0
    out = capsys.readouterr().out
    assert "prompts 16*" in out and "0.5* k3" in out and "r = 1 accuracy + 0.1 length" in out


def test_a_run_gives_a_folder_that_generate_takes_and_a_report(place, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(argv(place, "--out", out, *SHORT)) == 0
    printed = capsys.readouterr()
    assert (
        "6 questions; left out 1 x not JSON" in printed.out
        and "J = mean over answers" in printed.out
        and "memory for reinforcement" in printed.err
    )
    assert ("panels" in printed.err) == (native.library().library is not None)  # the engine's copies of the weights
    assert "finished: 2 steps" in printed.out and (out / "report.html").is_file()
    assert main(["generate", str(out), "say", "--max-new-tokens", "3"]) == 0
    assert main(["grpo", "--out", str(out), "--resume"]) == 0  # finished: nothing is done again
    assert len([1 for line in (out / "metrics.jsonl").read_text().splitlines() if '"train"' in line]) == 2


def test_adapters(place, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(argv(place, "--out", out, *SHORT, "--lora", 2, "--kl", "0.1")) == 0
    assert (out / "adapter" / "adapter_config.json").is_file() and not (out / "hf").exists()
    assert "<｜tool▁calls▁begin｜>" in (out / "tokenizer" / "chat_template.jinja").read_text(
        encoding="utf-8"
    )  # the style that it was trained in
    assert main(["generate", str(out), "say", "--max-new-tokens", "3"]) == 0


def test_a_run_without_any_signal_says_that_nothing_was_learned(place, tmp_path, capsys):
    short = ("--steps", 1, "--prompts", 1, "--group", 2, "--max-new-tokens", 2, "--reward", "accuracy")
    assert main(argv(place, "--out", tmp_path / "out", *short)) == 0
    assert "the last 1 rollouts had no group whose rewards differ, so nothing was learned from them" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--reward", "accuracy=x"), "NAME=WEIGHT"), (("--reward", "beauty"), "are not known"), (("--reward", "model"), "--reward-model"),
        (("--set", "objective.kl=1"), "kl_beta"), (("--lora-targets", "ffn"), "goes with --lora"), (("--group", "1"), "group (1)"),
        (("--preset", "r1"), "max_position_embeddings"),
    ],
)  # fmt: skip
def test_refusals_in_one_message(place, tmp_path, capsys, more, why):
    short = () if "--preset" in more else ("--max-new-tokens", 6)
    assert main(argv(place, "--out", tmp_path / "out", *short, *more)) == 1
    assert why in capsys.readouterr().err and not (tmp_path / "out" / "config.json").exists()


def test_wrong_usage(place, tmp_path):
    for words in (["grpo"], argv(place), argv(place, "--out", tmp_path / "o", "--tasks", "gcd"), ["grpo", "--out", str(tmp_path / "o")]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
