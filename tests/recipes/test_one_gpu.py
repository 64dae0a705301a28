"""The recipe for one GPU: 0.3 to 1B parameters, every part of V3."""

from __future__ import annotations

from rorqual.planner.params import count
from rorqual.recipes.one_gpu import one_gpu


def test_size_and_widths() -> None:
    run = one_gpu()
    assert 0.3e9 < count(run.model).total < 1e9
    assert all(n % 64 == 0 for n in (run.model.hidden_size, run.model.intermediate_size, run.model.moe_intermediate_size))
    assert run.model.num_nextn_predict_layers == 1


def test_schedules_at_their_boundaries() -> None:
    train = one_gpu().train
    assert [train.batch.value(t) for t in (0, 316_891_890, 316_891_891)] == [64, 240, 256]
    assert train.learning_rate.value(500, 0) == 3e-4
    assert train.learning_rate.value(9999, 6_756_756_755) == 6e-4
    assert [train.bias_update_speed.value(t) for t in (0, 9_662_162_161, 9_662_162_162)] == [1e-3, 1e-3, 0.0]
    assert [train.mtp_loss_weight.value(t) for t in (0, 6_756_756_755, 6_756_756_756)] == [0.3, 0.3, 0.1]
