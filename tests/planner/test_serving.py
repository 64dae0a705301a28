"""Bounds of inference, against the published ones."""

from __future__ import annotations

import re

import pytest

from rorqual.errors import ConfigError
from rorqual.planner.flops import forward_flops_per_token
from rorqual.planner.hardware import hardware
from rorqual.planner.memory import weight_bytes
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


def test_a_plan_by_hand() -> None:
    """671B on 16 H200: 16 experts of 58 layers a GPU, all else whole on each; 0.9 x 141 GB less that, at 70,272 x 8,192 bytes a request."""
    plan = plan_serving(V3, hardware("h200"), 16, 8192)
    experts = 16 * 58 * 44_040_192 * (1 + 4 / 16384)
    rest = weight_bytes(V3, fp8=True) - 16 * experts
    assert plan.tp == 1 and plan.weight_bytes_per_gpu == pytest.approx(experts + rest)
    assert plan.largest_batch == 16 * int((0.9 * 141e9 - experts - rest) // (70_272 * 8192))
    one = plan.decode[0]
    assert one.batch == 16 and one.bound == "memory"
    touched = 1 - (1 - 8 / 256) ** 16
    assert one.seconds == pytest.approx((rest + touched * experts + 8192 * 70_272) / 4800e9)
    assert plan.largest.tokens_per_second == pytest.approx(plan.largest_batch * plan.largest.tokens_per_second_per_user)
    assert plan.largest.cost_per_million_output_tokens == pytest.approx(16 * 3.5 / 3600 / plan.largest.tokens_per_second * 1e6)
    assert [one.batch for one in plan.decode] == sorted(one.batch for one in plan.decode)
    assert plan_serving(V3, hardware("h200"), 16, 8192, price=7.0).largest.cost_per_million_output_tokens == pytest.approx(
        2 * plan.largest.cost_per_million_output_tokens
    )
    assert plan_serving(V3, hardware("gb200"), 16, 8192).cost_per_million_input_tokens is None


def test_the_all_to_all_of_a_decode_step() -> None:
    """64 tokens a device are two micro-batches of the published 32: the MoE layers' 58 / 61 of 14.76 ms, at the true width of 7,168."""
    plan = plan_serving(V3, hardware("h800"), 320, 256)
    step = next(one for one in plan.decode if one.batch == 320 * 32)
    assert step.bound == "all-to-all"
    assert step.seconds == pytest.approx(14.76e-3 / 2 * 58 / 61 * 7168 / 7000, rel=1e-3)


def test_a_group_keeps_its_whole_cache_on_every_device() -> None:
    """The latents serve all heads, so splitting attention over four saves weights, not cache."""
    split, plain = (plan_serving(V3, hardware("h800"), 32, 4096, tp=tp) for tp in (4, 1))
    assert split.weight_bytes_per_gpu < plain.weight_bytes_per_gpu
    assert split.largest_batch < plain.largest_batch == plan_serving(V3, hardware("h800"), 32, 4096).largest_batch
    with pytest.raises(ConfigError, match=r"tp \(3\) must divide gpus \(32\).*use one of 1, 2, 4, 8"):
        plan_serving(V3, hardware("h800"), 32, 4096, tp=3)


def test_a_cache_in_fp8_holds_more() -> None:
    plain, coded = (plan_serving(V3, hardware("h200"), 16, 8192, fp8_cache=fp8) for fp8 in (False, True))
    assert coded.cache_bytes_per_token == 40_016 and coded.largest_batch == 16 * int(plain.cache_bytes_free // (40_016 * 8192))


def test_prefill_by_hand() -> None:
    """V2-Lite on one A100: 2 FLOP a weight but for the head, attention at T/2, all at the BF16 peak."""
    lite = preset("v2_lite_16b")
    plan = plan_serving(lite, hardware("a100"), 1, 1024)
    flop = forward_flops_per_token(lite, 1024) - 2 * 2048 * 102_400
    assert plan.prefill_bound == "compute" and plan.prefill_seconds == pytest.approx(1024 * flop / 312e12)
    assert plan.cost_per_million_input_tokens == pytest.approx(1.3 / 3600 * flop / 312e12 * 1e6)
    assert plan.weight_bytes == pytest.approx(2 * 15.706e9, rel=1e-3)
    assert plan_serving(V3, hardware("h800"), 32, 4096).prefill_bound == "all-to-all"


def test_what_does_not_fit_is_refused_with_the_number_that_does() -> None:
    with pytest.raises(ConfigError, match=r"8 x h800 have 80 GB each.*use (\d+) GPUs or more") as caught:
        plan_serving(V3, hardware("h800"), 8, 8192)
    enough = int(re.search(r"use (\d+) GPUs", str(caught.value)).group(1))
    assert plan_serving(V3, hardware("h800"), enough, 8192).largest_batch > 0
    with pytest.raises(ConfigError):
        plan_serving(V3, hardware("h800"), enough - 1, 8192)
    with pytest.raises(ConfigError, match="a device with more memory"):
        plan_serving(V3, hardware("a100"), 8, 10**7)
    with pytest.raises(ConfigError, match="must be at least 1"):
        plan_serving(V3, hardware("h800"), 0, 8192)
