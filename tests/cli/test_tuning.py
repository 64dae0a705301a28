"""How the verbs that train after pre-training begin and go on: one handling of --out, --resume, --overwrite and LoRA's options."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from rorqual.cli import tuning
from rorqual.errors import ConfigError, RunError
from rorqual.posttrain.reward_config import RewardConfig
from rorqual.train.records import to_plain


def ask(*argv: str, **options: bool) -> RewardConfig:
    parser = argparse.ArgumentParser()
    tuning.add_options(parser)
    tuning.add_lora(parser)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--votes", type=int, default=4)
    args = parser.parse_args(argv)

    def build(args: argparse.Namespace) -> RewardConfig:
        return RewardConfig(str(args.model), "d", lora=tuning.lora_of(args, args.seed or 0))

    return tuning.configuration(parser, args, RewardConfig, build, complete=args.model is not None, start="--model DIR", **options)


def test_a_run_begins_with_what_is_given() -> None:
    config = ask("--model", "m", "--out", "o", "--lora", "4", "--lora-targets", "attention", "--lora-alpha", "8", "--seed", "3")
    assert config.lora is not None and (config.lora.rank, config.lora.targets, config.lora.scale, config.lora.seed) == (
        4,
        ("attention",),
        2.0,
        3,
    )
    assert ask("--model", "m", "--out", "o").lora is None
    assert ask("--model", "m", needs_out=False).model == "m"
    with pytest.raises(ConfigError, match="--lora-alpha goes with --lora RANK"):
        ask("--model", "m", "--out", "o", "--lora-alpha", "8")


def test_resume_alone_takes_the_configuration_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(to_plain(RewardConfig("base", "pairs", epochs=3))))
    assert ask("--out", str(tmp_path), "--resume").epochs == 3
    with pytest.raises(RunError, match="holds no run to resume"):
        ask("--out", str(tmp_path / "none"), "--resume")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--resume", "--overwrite", "--out", "o"], "does not go with --overwrite"),
        (["--resume"], "give --out DIR"),
        (["--model", "m"], "give --out DIR"),
        (["--out", "o"], "give --model DIR, or --out DIR --resume"),
        (["--out", "o", "--resume", "--seed", "3"], "--seed would have no effect"),
        (["--out", "o", "--resume", "--votes", "3", "--lora", "1"], "--lora, --votes would have no effect"),
    ],
)
def test_wrong_mixtures_end_with_a_message(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        ask(*argv)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_stopped_run_says_how_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuning.stopped("sft", Path("my run"), 3, 9, 15) == 143
    assert capsys.readouterr().err == "stopped at step 3 of 9; continue with: rorqual sft --out 'my run' --resume\n"
