"""Cost: the report's table to the dollar by arithmetic, within 5 % by prediction, and the "one tenth" taken apart."""

from __future__ import annotations

import pytest

from rorqual.planner.cost import LLAMA3_405B, REPORT, compare, predict, report_arithmetic
from rorqual.planner.hardware import hardware
from rorqual.planner.layout import parse
from rorqual.presets import preset

V3 = preset("v3_671b")


def test_arithmetic_on_published_inputs_is_exact() -> None:
    found = report_arithmetic(V3)
    assert found["gpu_hours_total"] == 2_788_000 and found["cost_usd"] == 5_576_000
    assert found["gpu_hours_per_trillion_tokens"] == 180_000
    assert found["gpu_hours_per_trillion_tokens_from_step"] == pytest.approx(180_180, rel=1e-4)
    assert found["gpu_hours_pretraining_from_flop"] == pytest.approx(2.67e6, rel=0.01)
    assert found["v2_hours_saved_over_67b"] == pytest.approx(0.425, abs=5e-4)
    assert found["days_per_trillion_tokens"] == pytest.approx(3.66, abs=0.01) and found["days_pretraining"] == pytest.approx(54.2, abs=0.01)
    assert found["tokens_per_day"] == pytest.approx(272.80e9, rel=1e-4) and found["phases_sum_seconds"] == pytest.approx(19.90)
    assert found["gflop_per_token_causal"] == pytest.approx(249.7, abs=0.05) and found["gflop_per_token_non_causal"] == pytest.approx(
        280.2, abs=0.05
    )


def test_the_prediction_is_within_five_per_cent() -> None:
    found, _ = predict(V3, hardware("h800"), parse(REPORT.layout), tokens=14.8e12, batch_sequences=15360, seq_len=4096, extension=True,
                       post_training_hours=5000)  # fmt: skip
    for value, published in (
        (found.gpu_hours_total, 2_788_000), (found.cost_usd, 5_576_000), (found.gpu_hours_per_trillion_tokens, 180_000), (found.step_seconds, 19.926),
        (found.tokens_per_day, 272.8e9), (found.mfu_causal, 0.3894), (found.mfu_non_causal, 0.4373),
    ):  # fmt: skip
        assert value == pytest.approx(published, rel=0.05)
    assert 249.7 <= found.gflop_per_token <= 250.5


def test_price_and_missing_price() -> None:
    arguments = {"tokens": 1e12, "batch_sequences": 1024, "seq_len": 4096}
    layout = parse("pp16,dp128,ep64")
    arguments["batch_sequences"] = 15360
    cheap, _ = predict(V3, hardware("h800"), layout, price=1.0, **arguments)
    dear, _ = predict(V3, hardware("h800"), layout, price=4.0, **arguments)
    assert dear.cost_usd == pytest.approx(4 * cheap.cost_usd)
    assert predict(V3, hardware("gb200"), layout, **arguments)[0].cost_usd is None


def test_one_tenth_taken_apart() -> None:
    found = compare(V3, LLAMA3_405B, 70_272)
    assert (
        round(found["flop_ratio"], 1) == 10.2
        and round(found["gpu_hours_ratio"], 2) == 11.06
        and round(found["gpu_hours_ratio_pretraining"], 2) == 11.58
    )
    assert found["cache_bytes_other"] == 516_096 and found["left_for_hardware_and_software"] == pytest.approx(1.08, abs=0.01)
