"""Bounds of inference, against the published ones."""

from __future__ import annotations

import pytest

from rorqual.errors import ConfigError
from rorqual.planner.hardware import hardware
from rorqual.planner.serving import UNITS, all_to_all_seconds, decode_seconds_per_token, plan_serving, production_day
from rorqual.presets import preset

V3 = preset("v3_671b")


def test_the_published_decode_bounds() -> None:
    """120.96 microseconds an all-to-all pair, 14.76 ms and 0.82 ms a token, 67 and about 1,200 tokens a second."""
    assert all_to_all_seconds(V3, 50e9, hidden=7000) == pytest.approx(120.96e-6)
    assert all_to_all_seconds(V3, 900e9, hidden=7000) == pytest.approx(6.72e-6)
    assert decode_seconds_per_token(V3, 50e9) == pytest.approx(14.76e-3, abs=1e-5)
    assert decode_seconds_per_token(V3, 900e9) == pytest.approx(0.82e-3, abs=1e-5)
    assert int(1 / decode_seconds_per_token(V3, 50e9)) == 67


def test_the_published_day() -> None:
    day = production_day()
    assert day["cost_usd"] == pytest.approx(87_072) and day["cache_hit_share"] == pytest.approx(0.5625)
    assert day["per_million_output_tokens"] == pytest.approx(0.518, abs=0.001)
    assert (UNITS["prefill"]["gpus"], UNITS["decode"]["gpus"]) == (32, 320)


def test_a_plan_is_consistent() -> None:
    plan = plan_serving(V3, hardware("h200"), 16, 8192)
    assert plan.cache_bytes_per_token == 70_272 and plan.largest_batch == int(plan.cache_bytes_free // (70_272 * 8192))
    assert plan.tokens_per_second == pytest.approx(plan.largest_batch * plan.tokens_per_second_per_user)
    assert plan.cost_per_million_output_tokens == pytest.approx(16 * 3.5 / 3600 / plan.tokens_per_second * 1e6)
    assert plan_serving(V3, hardware("h200"), 16, 8192, price=7.0).cost_per_million_output_tokens == pytest.approx(
        2 * plan.cost_per_million_output_tokens
    )
    assert plan_serving(V3, hardware("gb200"), 16, 8192).cost_per_million_output_tokens is None
    small = plan_serving(preset("v2_lite_16b"), hardware("a100"), 1, 1024)
    assert small.decode_bound in ("memory", "compute") and small.weight_bytes == pytest.approx(2 * 15.706e9, rel=1e-3)


def test_what_does_not_fit_is_refused_with_the_number_that_does() -> None:
    with pytest.raises(ConfigError, match=r"8 x h800 have 640 GB.*use 10 GPUs or more"):
        plan_serving(V3, hardware("h800"), 8, 8192)
    plan_serving(V3, hardware("h800"), 10, 8192)
    with pytest.raises(ConfigError, match="must be at least 1"):
        plan_serving(V3, hardware("h800"), 0, 8192)
