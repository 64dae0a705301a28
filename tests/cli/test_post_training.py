"""The stages behind pre-training: stopped and resumed, left alone when finished, accuracy of all three models, cleared for a new start."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rorqual.cli import post_training
from rorqual.cli.post_training import PostStages, sentence
from rorqual.posttrain import sft
from rorqual.posttrain.report import sections
from rorqual.recipes.post_training import laptop
from tests.posttrain.tiny_chat import write_model

SEEN: list[str] = []


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    SEEN.append(name)
    yield


def stages_of(out: Path) -> PostStages:
    """The laptop's stages, shrunk to seconds; rewards are those of length, which a random model can earn."""
    course = laptop()
    grpo = replace(course.grpo.grpo, steps=2, prompts=2, group=3, max_new_tokens=12, rewards={"length": 1.0}, max_penalty_length=11)
    course = replace(
        course, sft=replace(course.sft, epochs=1, learning_rate=1e-3, render=replace(course.sft.render, max_tokens=256)),
        grpo=replace(course.grpo, grpo=grpo), sft_samples=60, rl_problems=6, heldout_problems=5,
    )  # fmt: skip
    return PostStages(course.placed(out), out)


def test_stages_go_on_where_they_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path)
    out = tmp_path / "run"
    out.mkdir()
    shutil.move(tmp_path / "model", out / "hf")
    shutil.copy(out / "hf" / "config.json", out / "config.json")
    stages = stages_of(out)
    real, calls = sft.train_step, {"n": 0}

    def killed(*args: Any, **kwargs: Any) -> Any:
        calls["n"] += 1
        if calls["n"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(sft, "train_step", killed)
        assert stages.train(stage) == signal.SIGTERM and not (out / "sft" / "hf").exists()
    before = (out / "problems" / "rl.jsonl").read_bytes()
    assert stages.train(stage) is None and (out / "grpo" / "hf" / "config.json").is_file()
    assert SEEN == ["problems", "sft", "problems", "sft", "grpo"] and (out / "problems" / "rl.jsonl").read_bytes() == before
    model = (out / "grpo" / "hf" / "model.safetensors").stat().st_mtime_ns
    assert stages.train(stage) is None and SEEN[5:] == ["problems"]
    assert (out / "grpo" / "hf" / "model.safetensors").stat().st_mtime_ns == model

    results = stages.accuracy()
    for name in ("pretrained", "sft", "grpo"):
        assert results[f"accuracy_{name}"] == 0.0 and results[f"accuracy_{name}_stderr"] == results[f"accuracy_{name}_greedy"] == 0.0
        assert len(results["post_training"]["examples"][name]) == 5
    assert results["post_training"]["problems"] == 5 and "0.0 % (± 0.0, greedy 0.0) after GRPO" in sentence(results)
    assert [section.id for section in sections(out)][:3] == ["accuracy", "sft", "rl"]
    stages.clear()
    assert not any((out / name).exists() for name in post_training.FOLDERS) and (out / "hf").is_dir()
