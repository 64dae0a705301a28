"""The V2-Lite recipe against V2 appendix B."""

from __future__ import annotations

import pytest

from rorqual.recipes.v2_lite_16b import v2_lite_16b


@pytest.mark.parametrize(
    ("step", "share", "lr"),
    [(0, 0.0, 0.0), (1000, 0.01, 2.1e-4), (2000, 0.02, 4.2e-4), (9000, 0.7999, 4.2e-4), (9000, 0.8, 1.3272e-4), (9000, 0.9, 4.193952e-5), (9000, 1.0, 4.193952e-5)],
)  # fmt: skip
def test_step_decay(step: int, share: float, lr: float) -> None:
    train = v2_lite_16b().train
    assert train.learning_rate.value(step, round(share * 5_700_000_000_000)) == pytest.approx(lr)


def test_values() -> None:
    run = v2_lite_16b()
    assert (run.train.batch.value(0), run.train.batch.value(10**13), run.train.sequence_length) == (4608, 4608, 4096)
    assert run.train.total_tokens == 5_700_000_000_000
    assert (run.train.bias_update_speed.value(0), run.train.mtp_loss_weight.value(0), run.model.num_nextn_predict_layers) == (0.0, 0.0, 0)
    assert (run.model.scoring_func, run.model.topk_method, run.model.q_lora_rank, run.model.rope_scaling) == (
        "softmax",
        "greedy",
        None,
        None,
    )
    assert run.train.optimizer.clip_norm == 1.0
