"""Runs of GRPO: reward rises, interrupted and killed equal uninterrupted to the bit, no signal is an error, nothing grows."""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rorqual.checkpoint import hf, resume
from rorqual.errors import CheckpointError, ConfigError, DataError, RunError
from rorqual.posttrain import grpo
from rorqual.posttrain.grpo import run_grpo
from rorqual.posttrain.grpo_config import GRPORun
from rorqual.posttrain.presets import GRPOConfig, Objective
from rorqual.posttrain.problems import Problems, problem_of
from rorqual.posttrain.rewards import Outcome
from rorqual.train.metrics import memory_bytes
from tests.posttrain.tiny_chat import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grpo")
    write_model(root)
    return root / "model"


def questions(count: int = 7) -> Problems:
    return Problems([problem_of({"prompt": f"say {n}" + " again" * (n % 3), "answer": str(n), "id": n}) for n in range(count)], {}, {})


def low_ids(_problem: Any, answer: Any) -> Outcome:
    """Pays for the share of tokens with a low id: something that a random model gets right now and then."""
    share = sum(token < 150 for token in answer.ids) / len(answer.ids)
    return Outcome("right" if share > 0.5 else "wrong", share)


JUDGES = {"model": low_ids}


def run_of(model: Path, **changes: Any) -> GRPORun:
    fields = {
        "steps": 4,
        "prompts": 2,
        "group": 4,
        "max_new_tokens": 8,
        "learning_rate": 3e-3,
        "rewards": {"model": 1.0},
        "checkpoint_every_steps": 2,
    }
    return GRPORun(model=str(model), device="cpu", grpo=GRPOConfig(**{**fields, **changes}))


def go(run: GRPORun, out: Path, **more: Any) -> grpo.GRPOResult:
    return run_grpo(run, out, **{"problems": questions(), "judges": JUDGES, "progress": False, **more})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return hf.load(folder)[0].state_dict()


def same(one: Path, other: Path) -> bool:
    first, second = weights(one / "hf"), weights(other / "hf")
    return all(torch.equal(value, second[name]) for name, value in first.items())


def lines(out: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def train_lines(out: Path) -> list[dict[str, Any]]:
    """Train records without what a clock says."""
    clock = ("seconds", "memory_bytes")
    return [{k: v for k, v in row.items() if not k.endswith(clock)} for row in lines(out) if row["kind"] == "train"]


def test_the_reward_rises_and_everything_is_written(model, tmp_path):
    run = run_of(model, steps=12, prompts=4, learning_rate=2e-2, checkpoint_every_steps=99)
    result = go(run, tmp_path / "out")
    found = train_lines(tmp_path / "out")
    assert result.signal is None and result.step == 12 == len(found)
    means = [row["reward_mean"] for row in found]
    assert sum(means[-4:]) > sum(means[:4]) + 0.6
    assert found[0]["max_ratio"] == 1.0 and found[0]["logprob_gap_max"] < 1e-5 and found[0]["routing_flip_rate"] == 0.0
    assert found[0]["components"]["model"]["std"] > 0 and found[0]["groups"] == 4
    before, after = weights(model), weights(tmp_path / "out" / "hf")
    biases = [name for name in before if name.endswith("e_score_correction_bias")]
    assert biases and all(torch.equal(before[name], after[name]) for name in biases)
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("model.layers.3."))
    answers = lines(tmp_path / "out", "answers.jsonl")
    assert len(answers) == 48 and [row["rollout"] for row in answers[:5]] == [1, 1, 1, 1, 2]
    one = answers[0]
    assert (
        len(one["answers"]) == 4 and one["gold"] is not None and {"text", "reward", "advantage", "components"} <= one["answers"][0].keys()
    )
    centred = [(a["reward"] - one["mean"]) / one["std"] for a in one["answers"]]
    assert [a["advantage"] for a in one["answers"]] == pytest.approx(centred, abs=1e-4)


CASES = {
    "plain": {},
    "minibatches, reference refreshed": {"minibatches": 2, "reference_refresh": 3, "objective": Objective(kl_beta=0.1), "checkpoint_every_steps": 3},
    "filtered, r2": {"top_k": 6, "routing_replay": "r2", "minibatches": 2, "checkpoint_every_steps": 3},
    "refilled": {"groups_without_signal": "refill", "checkpoint_every_steps": 2},
}  # fmt: skip


@pytest.mark.parametrize("case", [name if number < 2 else pytest.param(name, marks=pytest.mark.slow) for number, name in enumerate(CASES)])
def test_interrupted_equals_uninterrupted_to_the_bit(model, tmp_path, monkeypatch, case):
    """A signal in the middle of a rollout's steps: questions, waiting groups, moments and reference come back as they were."""
    run = run_of(model, **{"steps": 5, **CASES[case]})
    go(run, tmp_path / "whole")
    step, done = grpo.update.update, []

    def stopping(*given):
        done.append(1)
        if len(done) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*given)

    monkeypatch.setattr(grpo.update, "update", stopping)
    assert go(run, tmp_path / "cut").signal == signal.SIGTERM
    assert not (tmp_path / "cut" / "hf").exists()
    result = go(run, tmp_path / "cut", resume_run=True)
    assert result.step == 5 and same(tmp_path / "whole", tmp_path / "cut")
    assert train_lines(tmp_path / "whole") == train_lines(tmp_path / "cut")
    assert lines(tmp_path / "whole", "answers.jsonl") == lines(tmp_path / "cut", "answers.jsonl")


SCRIPT = """
import sys
from pathlib import Path
from tests.posttrain.test_grpo import go, run_of
go(run_of(Path(sys.argv[1]), steps=60, minibatches=2, checkpoint_every_steps=5), Path(sys.argv[2]), resume_run=len(sys.argv) > 3)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(model, tmp_path):
    def command(out: str, *more: str) -> list[str]:
        return [sys.executable, "-c", SCRIPT, str(model), str(tmp_path / out), *more]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command("whole"), check=True, env=environment)
    for kill_at in (7, 24, 41):
        resumed = ("resume",) if (tmp_path / "cut" / "config.json").exists() else ()
        process = subprocess.Popen(command("cut", *resumed), env=environment)
        metrics = tmp_path / "cut" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count('"train"') >= kill_at):
            time.sleep(0.01)
        process.kill()
        process.wait()
    subprocess.run(command("cut", "resume"), check=True, env=environment)
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert train_lines(tmp_path / "whole") == train_lines(tmp_path / "cut")
    assert lines(tmp_path / "whole", "answers.jsonl") == lines(tmp_path / "cut", "answers.jsonl")


def test_other_questions_or_settings_are_refused_on_resume(model, tmp_path):
    run = run_of(model, steps=1)
    go(run, tmp_path / "out")
    with pytest.raises(CheckpointError, match="problems_fingerprint"):
        go(run, tmp_path / "out", resume_run=True, problems=questions(6))
    with pytest.raises(ConfigError, match="learning_rate"):
        go(replace(run, grpo=replace(run.grpo, learning_rate=1.0)), tmp_path / "out", resume_run=True)
    with pytest.raises(RunError, match="already holds a run"):
        go(run, tmp_path / "out")
    assert go(run, tmp_path / "out", overwrite=True).step == 1
    assert len(lines(tmp_path / "out", "answers.jsonl")) == 2


@pytest.mark.parametrize(
    ("judge", "why"),
    [
        (lambda p, a: Outcome("wrong", 0.0), "every reward of the last rollout is 0"),
        (lambda p, a: 1 / 0, "could be judged .ZeroDivisionError"),
    ],
)
def test_a_task_without_signal_stops_with_an_error_and_keeps_what_was_said(model, tmp_path, judge, why):
    run = run_of(model, max_rollouts_without_signal=3, steps=50)
    with pytest.raises(DataError, match=why):
        go(run, tmp_path / "out", judges={"model": judge})
    assert len(train_lines(tmp_path / "out")) == 2 and len(lines(tmp_path / "out", "answers.jsonl")) == 6
    assert all(row["outcome"] == "no signal" for row in train_lines(tmp_path / "out"))
    assert resume.steps(tmp_path / "out" / "checkpoints") == [2]  # what was done before is kept


@pytest.mark.slow
def test_a_server_that_goes_away_costs_nothing_that_was_done(model, tmp_path, monkeypatch):
    run = run_of(model, checkpoint_every_steps=99)
    go(run, tmp_path / "whole")
    sample, calls = grpo.LocalRollout.sample, []

    def gone(*given):
        calls.append(1)
        if len(calls) == 3:
            raise RunError("the server answers no more")
        return sample(*given)

    monkeypatch.setattr(grpo.LocalRollout, "sample", gone)
    with pytest.raises(RunError, match="answers no more"):
        go(run, tmp_path / "cut")
    assert resume.steps(tmp_path / "cut" / "checkpoints") == [2]
    go(run, tmp_path / "cut", resume_run=True)
    assert same(tmp_path / "whole", tmp_path / "cut") and train_lines(tmp_path / "whole") == train_lines(tmp_path / "cut")
    assert lines(tmp_path / "whole", "answers.jsonl") == lines(tmp_path / "cut", "answers.jsonl")


def test_groups_without_signal_are_counted_dropped_or_refilled(model, tmp_path):
    def judge(problem, answer):
        return Outcome("right", 1.0) if int(problem.id) % 2 else low_ids(problem, answer)

    for mode in ("keep", "drop", "refill"):
        run = run_of(model, steps=2, prompts=3, groups_without_signal=mode, refill_attempts=3)
        go(run, tmp_path / mode, judges={"model": judge})
        row = train_lines(tmp_path / mode)[0]
        if mode == "refill":
            assert row["groups"] > 3 and row["groups_with_signal"] >= 3 and 9 <= row["trained_answers"] <= 12
        else:
            assert (
                row["groups"] == 3 > row["groups_with_signal"]
                and 2 * row["groups_with_signal"] <= row["trained_answers"] <= 4 * row["groups_with_signal"]
            )


def test_questions_that_do_not_fit_are_left_out_and_counted(model, tmp_path):
    long = problem_of({"prompt": "word " * 400, "answer": "1", "id": "long"})
    some = Problems([long, *questions(3).items], {}, {})
    go(run_of(model, steps=3), tmp_path / "out", problems=some)
    assert train_lines(tmp_path / "out")[-1]["over_long"] >= 1
    with pytest.raises(DataError, match="all 1 questions have more than"):
        go(run_of(model), tmp_path / "none", problems=Problems([long], {}, {}))


def test_what_cannot_work_is_refused_before_anything_is_written(model, tmp_path):
    for run, why in (
        (run_of(model, max_new_tokens=256), "max_new_tokens"), (run_of(model, rewards={"nothing": 1.0}), "not known"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=why):
            go(run, tmp_path / "out")
    with pytest.raises(ConfigError, match="no questions"):
        go(run_of(model), tmp_path / "out", problems=None)
    assert not (tmp_path / "out").exists()


def test_time_can_end_a_run(model, tmp_path):
    result = go(replace(run_of(model, steps=10_000), max_seconds=1e-6), tmp_path / "out")
    assert result.step == 1 and (tmp_path / "out" / "hf" / "config.json").is_file()


@pytest.mark.slow
def test_memory_stays_flat_over_500_steps(model, tmp_path):
    """Field case F37: rewards that fail and steps without signal among them; resident memory from step 50 on within 5%."""
    seen: list[tuple[int, int, int]] = []

    def judge(problem, answer):
        if len(answer.ids) == 3:
            raise RuntimeError("fails now and then")
        return Outcome("right", 1.0) if problem.id == "0" else low_ids(problem, answer)

    show = grpo.Progress.show

    def look(self, step, figures):
        if step % 50 == 0:
            gc.collect()
            seen.append((memory_bytes(torch.device("cpu")), len(gc.get_objects()), len(os.listdir("/proc/self/fd"))))
        show(self, step, figures)

    grpo.Progress.show = look  # type: ignore[method-assign]
    try:
        go(run_of(model, steps=500, learning_rate=1e-4, checkpoint_every_steps=100), tmp_path / "out", judges={"model": judge})
    finally:
        grpo.Progress.show = show  # type: ignore[method-assign]
    assert len(seen) == 10 and seen[-1][0] < 1.05 * seen[1][0]
    assert abs(seen[-1][1] - seen[1][1]) < 0.02 * seen[1][1] and abs(seen[-1][2] - seen[1][2]) <= 1
    assert math.isfinite(train_lines(tmp_path / "out")[-1]["loss"])
