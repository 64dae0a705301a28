"""The laptop recipes keep the report's schedules, scaled to their tokens."""

from __future__ import annotations

import pytest

from rorqual.recipes.laptop import laptop, laptop_1h
from rorqual.train.hyperparams import RunConfig


@pytest.mark.parametrize("run", [laptop(), laptop_1h()], ids=lambda run: run.name)
def test_schedules_are_the_reports_scaled(run: RunConfig) -> None:
    train, total = run.train, run.train.total_tokens
    lr, late = train.learning_rate, 10**9

    def at(of_report: int) -> int:
        return total * of_report // 14_800

    assert lr.value(0, 0) == 0.0
    assert lr.value(lr.warmup_steps, 0) == lr.value(late, at(10_000) - 1) == lr.peak
    assert lr.value(late, at(14_300)) == lr.value(late, at(14_633) - 1) == pytest.approx(lr.peak / 10)
    assert lr.value(late, at(14_633)) == lr.value(late, total) == pytest.approx(lr.peak * 7.3 / 220)
    assert [train.bias_update_speed.value(t) for t in (0, at(14_300) - 1, at(14_300))] == [1e-3, 1e-3, 0.0]
    assert [train.mtp_loss_weight.value(t) for t in (0, at(10_000) - 1, at(10_000))] == [0.3, 0.3, 0.1]
    assert train.batch.value(0) <= train.batch.value(total)
    assert lr.warmup_steps < train.num_steps() / 4


@pytest.mark.parametrize("run", [laptop(), laptop_1h()], ids=lambda run: run.name)
def test_every_part_of_the_architecture_is_on(run: RunConfig) -> None:
    model = run.model
    assert model.n_routed_experts and model.n_shared_experts and model.num_nextn_predict_layers and model.q_lora_rank
    assert model.topk_group < model.n_group
    assert (model.scoring_func, model.topk_method) == ("sigmoid", "noaux_tc")
    assert run.build.vocab_size <= model.vocab_size <= 65536  # two bytes per token on disk
    assert run.train.validation_source == "code"
    assert run.train.sample_prompts
