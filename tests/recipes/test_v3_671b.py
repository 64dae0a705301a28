"""The 671B recipe at every boundary of report sections 4.2 and 4.3."""

from __future__ import annotations

import pytest

from rorqual.config import RopeScaling
from rorqual.recipes.v3_671b import v3_671b, v3_671b_32k, v3_671b_128k

B = 10**9


@pytest.mark.parametrize(
    ("step", "tokens", "lr", "batch", "gamma", "weight"),
    [
        (0, 0, 0.0, 3072, 1e-3, 0.3),
        (1000, 13 * B, 1.1e-4, 3328, 1e-3, 0.3),  # 3072 + 12288 * 13/469 = 3412.6, rounded down to a multiple of 128
        (2000, 27 * B, 2.2e-4, 3712, 1e-3, 0.3),
        (12_000, 469 * B - 1, 2.2e-4, 15232, 1e-3, 0.3),
        (12_000, 469 * B, 2.2e-4, 15360, 1e-3, 0.3),
        (160_000, 10_000 * B - 1, 2.2e-4, 15360, 1e-3, 0.3),
        (160_000, 10_000 * B, 2.2e-4, 15360, 1e-3, 0.1),
        (200_000, 12_150 * B, 1.21e-4, 15360, 1e-3, 0.1),
        (230_000, 14_300 * B - 1, 2.2e-5, 15360, 1e-3, 0.1),
        (230_000, 14_300 * B, 2.2e-5, 15360, 0.0, 0.1),
        (236_000, 14_633 * B - 1, 2.2e-5, 15360, 0.0, 0.1),
        (236_000, 14_633 * B, 7.3e-6, 15360, 0.0, 0.1),
        (242_000, 14_800 * B, 7.3e-6, 15360, 0.0, 0.1),
    ],
)
def test_schedules(step: int, tokens: int, lr: float, batch: int, gamma: float, weight: float) -> None:
    train = v3_671b().train
    assert train.learning_rate.value(step, tokens) == pytest.approx(lr, rel=1e-9)
    assert train.batch.value(tokens) == batch
    assert train.bias_update_speed.value(tokens) == gamma
    assert train.mtp_loss_weight.value(tokens) == weight


def test_values_of_the_report() -> None:
    run = v3_671b()
    assert run.model.initializer_range == 0.006
    assert (run.model.rope_scaling, run.model.max_position_embeddings, run.train.sequence_length) == (None, 4096, 4096)
    assert (run.model.topk_group, run.model.num_nextn_predict_layers, run.train.aux_loss_alpha) == (4, 1, 1e-4)
    adam = run.train.optimizer
    assert (adam.beta1, adam.beta2, adam.weight_decay, adam.clip_norm, adam.moments) == (0.9, 0.95, 0.1, 1.0, "bf16")
    assert run.train.total_tokens == 14_800 * B
    assert run.train.batch.end * run.train.sequence_length == 62_914_560
    assert run.data.fim_rate == 0.1
    assert set(run.train.recompute) == {"norms", "mla_up", "swiglu"}


def test_number_of_steps_agrees_with_the_ramp() -> None:
    full = (14_800 * B - 469 * B) / 62_914_560
    ramp = v3_671b().train.num_steps() - full
    assert full == pytest.approx(227_786, abs=1)
    assert 14_900 < ramp < 15_300  # linear in tokens: 469e9 / (4096 * 12288) * ln(5) = 14,997, plus the rounding down to 128


@pytest.mark.parametrize(("recipe", "length", "sequences"), [(v3_671b_32k, 32768, 1920), (v3_671b_128k, 131072, 480)])
def test_extension_phases(recipe: object, length: int, sequences: int) -> None:
    run = recipe()  # type: ignore[operator]
    assert run.train.sequence_length == length
    assert run.train.batch.value(0) == run.train.batch.value(10**12) == sequences
    assert sequences * length == 62_914_560
    assert run.train.num_steps() == 1000
    assert {run.train.learning_rate.value(s, s * 62_914_560) for s in (0, 1, 500, 999)} == {7.3e-6}
    assert (run.train.bias_update_speed.value(0), run.train.mtp_loss_weight.value(0)) == (0.0, 0.1)
    assert run.model.rope_scaling == RopeScaling(40.0, 4096, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0)
    assert run.model.with_(rope_scaling=None, max_position_embeddings=4096) == v3_671b().model
