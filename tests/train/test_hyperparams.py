"""RunConfig: defaults of the report, refusals before any work, exact JSON, named differences, command-line overrides."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from rorqual.config import RopeScaling
from rorqual.data.config import BuildConfig, DataConfig
from rorqual.errors import ConfigError
from rorqual.train.hyperparams import (
    BatchSchedule,
    GammaSchedule,
    LambdaSchedule,
    LearningRateSchedule,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
    diff,
    from_command_line,
)
from tests.tiny import t0


def training(**changes: Any) -> TrainConfig:
    total = 14_800
    fields: dict[str, Any] = {
        "total_tokens": total, "sequence_length": 32, "micro_batch_sequences": 2, "learning_rate": LearningRateSchedule.scaled(total),
        "batch": BatchSchedule.constant(4), "bias_update_speed": GammaSchedule.scaled(total), "mtp_loss_weight": LambdaSchedule.scaled(total),
    }  # fmt: skip
    return TrainConfig(**{**fields, **changes})


def run(**changes: Any) -> RunConfig:
    fields: dict[str, Any] = {
        "name": "tiny", "model": t0(), "data": DataConfig({"code": 0.9, "arithmetic": 0.1}), "build": BuildConfig(vocab_size=256), "train": training(),
    }  # fmt: skip
    return RunConfig(**{**fields, **changes})


def test_optimizer_defaults_are_the_reports() -> None:
    adam = OptimizerConfig()
    assert (adam.beta1, adam.beta2, adam.weight_decay, adam.clip_norm) == (0.9, 0.95, 0.1, 1.0)
    assert [adam.decays(n) for n in (1, 2, 3)] == [False, True, True]
    assert replace(adam, decay_norms=True).decays(1)
    assert training().aux_loss_alpha == 1e-4


@pytest.mark.parametrize(
    ("total", "batch", "steps"),
    [
        (1, BatchSchedule.constant(4), 1),
        (128, BatchSchedule.constant(4), 1),
        (129, BatchSchedule.constant(4), 2),
        (14_800, BatchSchedule.constant(4), 116),
        (10_000, BatchSchedule(start=1, end=8, ramp_tokens=5_000), None),
        (700, BatchSchedule(start=1, end=8, ramp_tokens=5_000), None),
    ],
)
def test_number_of_steps(total: int, batch: BatchSchedule, steps: int | None) -> None:
    if steps is None:
        steps = tokens = 0
        while tokens < total:
            tokens += batch.value(tokens) * 32
            steps += 1
    assert training(total_tokens=total, batch=batch).num_steps() == steps


def test_json_round_trip_is_exact() -> None:
    config = run(model=t0(rope_scaling=None, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]}))
    again = RunConfig.from_json(config.to_json())
    assert again == config
    assert again.to_json() == config.to_json()
    assert RunConfig.from_json(run().to_json()).model.rope_scaling == t0().rope_scaling


def test_difference_names_fields() -> None:
    other = run(train=training(seed=3, optimizer=OptimizerConfig(moments="bf16")), model=t0(rope_scaling=None))
    assert set(diff(run(), other)) == {"train.seed", "train.optimizer.moments", "model.rope_scaling"}
    assert diff(run(), run()) == {}


def test_with_replaces_dotted_fields() -> None:
    scaling = {"factor": 8.0, "original_max_position_embeddings": 64}
    changed = run().with_({"model.rope_scaling": scaling, "train.recompute": ["norms", "swiglu"], "data.sources": {"code": 1.0}})
    assert changed.model.rope_scaling == RopeScaling(8.0, 64)
    assert changed.train.recompute == ("norms", "swiglu")
    assert changed.data.sources == {"code": 1.0}


def test_command_line_refusals_keep_their_message(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, message in ((["--train.total-tokens", "0"], "train.total_tokens (0)"), (["--train.bogus", "1"], "--train.bogus")):
        with pytest.raises(SystemExit) as stop:
            from_command_line(run(), argv)
        assert stop.value.code == 2
        assert message in "".join(capsys.readouterr())


def test_command_line_overrides() -> None:
    argv = "--train.seed 99 --data.sources.code 3 --train.recompute norms mla_up --train.ema_decay 0.9 --model.routed-scaling-factor 1.5"
    changed = from_command_line(run(), argv.split())
    assert set(diff(run(), changed)) == {
        "train.seed", "data.sources.code", "train.recompute", "train.ema_decay", "model.routed_scaling_factor",
    }  # fmt: skip
    assert from_command_line(run(), []) == run()


def test_another_length_stretches_the_schedules_that_are_not_given() -> None:
    longer = from_command_line(run(), ["--train.total-tokens", "148000", "--train.mtp-loss-weight.until-tokens", "7"]).train
    assert longer.total_tokens == 148_000
    assert longer.learning_rate == LearningRateSchedule.scaled(148_000)
    assert longer.bias_update_speed == GammaSchedule.scaled(148_000)
    assert longer.mtp_loss_weight.until_tokens == 7
    ramp = training(batch=BatchSchedule(start=2, end=8, ramp_tokens=300)).stretched(1480)
    assert (ramp.batch, ramp.total_tokens) == (BatchSchedule(start=2, end=8, ramp_tokens=30), 1480)
    assert training().stretched(14_800) == training()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: run(name="../evil"), "plain folder name"),
        (lambda: run(name=""), "plain folder name"),
        (
            lambda: run(train=training(sequence_length=512)),
            r"sequence_length \(512\) must be at most model.max_position_embeddings \(256\)",
        ),
        (lambda: run(train=training(sequence_length=1)), r"sequence_length \(1\) must be above model.num_nextn_predict_layers \(1\)"),
        (lambda: run(train=training(validation_source="prose")), r"validation_source \('prose'\) is not a source .*arithmetic, code"),
        (lambda: run(build=BuildConfig(vocab_size=257)), r"build.vocab_size \(257\) must be at most model.vocab_size \(256\)"),
        (lambda: run(model=t0(q_lora_rank=-1)), "q_lora_rank is absent"),
        (lambda: training(total_tokens=0), r"train.total_tokens \(0\) must be a whole number of at least 1"),
        (lambda: training(micro_batch_sequences=1.5), "micro_batch_sequences"),
        (lambda: training(ema_decay=1.0), r"ema_decay \(1.0\)"),
        (lambda: training(recompute=("attention",)), r"recompute \('attention'\) is not known; use 'norms' or 'mla_up' or 'swiglu'"),
        (lambda: training(device="tpu"), r"device \('tpu'\) is not known"),
        (lambda: training(dtype="fp16"), "dtype"),
        (lambda: training(threads=0), "threads"),
        (lambda: OptimizerConfig(beta2=1.0), r"beta2 \(1.0\)"),
        (lambda: OptimizerConfig(moments="fp8"), r"moments \('fp8'\) is not known"),  # type: ignore[arg-type]
        (lambda: OptimizerConfig(clip_norm=0.0), "clip_norm"),
        (lambda: RunConfig.from_json("{"), "not JSON"),
        (lambda: RunConfig.from_json("[]"), "must be an object"),
    ],
)
def test_impossible_runs_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_data_without_named_sources_accepts_any_validation_source() -> None:
    assert run(data=DataConfig(), train=training(validation_source="mine")).train.validation_source == "mine"


def test_no_torch() -> None:
    code = "import sys, rorqual.train.hyperparams; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
