"""Memory by part: the report's run fits its GPUs, recomputation and shared-out state do what they should."""

from __future__ import annotations

import pytest

from rorqual.errors import ConfigError
from rorqual.planner.hardware import hardware
from rorqual.planner.layout import Layout, parse
from rorqual.planner.memory import cache_bytes_per_token, training_memory, weight_bytes
from rorqual.planner.params import count
from rorqual.presets import preset

V3, H800 = preset("v3_671b"), hardware("h800")


def test_the_reports_run_fits_eighty_gigabytes_and_only_with_recomputation() -> None:
    layout = parse("pp16,dp128,ep64")
    memory = training_memory(V3, H800, layout, 4096, 15360)
    assert memory.fits and memory.chunks_in_flight == 17 and memory.total > 0.8 * memory.available
    assert not training_memory(V3, H800, layout, 4096, 15360, recompute=()).fits
    assert not training_memory(V3, H800, parse("pp8,dp256,ep64"), 4096, 15360).fits


def test_state_is_shared_out_over_replicas() -> None:
    one, many = (training_memory(V3, H800, Layout(16, dp, 64), 4096, 120 * dp).parts for dp in (64, 128))
    assert many["weights"] == one["weights"] and many["master"] < one["master"]
    fp32 = training_memory(V3, H800, Layout(16, 64, 64), 4096, 7680, moments="fp32").parts
    assert fp32["moments"] == 2 * one["moments"]


def test_parameters_shared_out_by_hand() -> None:
    """V2-Lite on 8 devices, EP1: 2 + 4 bytes of an eighth of 15.7B parameters, and two blocks whole at a time."""
    config = preset("v2_lite_16b")
    whole, shared = (training_memory(config, hardware("h100"), Layout(1, 8, 1, "1f1b", zero), 4096, 64).parts for zero in (1, 3))
    sizes = count(config)
    assert shared["weights"] == pytest.approx(2 * sizes.total / 8) and shared["gradients"] == pytest.approx(4 * sizes.total / 8)
    assert shared["gathered"] == 6 * 2 * (sizes.attention + 66 * sizes.expert + sizes.router)
    assert whole["weights"] == pytest.approx(2 * sizes.total) and whole["gathered"] == 0 and whole["moments"] == shared["moments"]


def test_without_fp8_there_are_no_copies() -> None:
    assert training_memory(preset("v2_lite_16b"), hardware("a100"), Layout(1, 8, 8, "1f1b"), 4096, 64).parts["fp8_copies"] == 0


def test_inference_bytes() -> None:
    assert cache_bytes_per_token(V3) == 70_272 and cache_bytes_per_token(V3, fp8=True) == 61 * 656 == 40_016
    assert weight_bytes(V3, fp8=False) == 2 * count(V3).total
    assert weight_bytes(V3, fp8=True) == pytest.approx(673e9, rel=0.01)


@pytest.mark.parametrize("wrong", [{"recompute": ("everything",)}, {"moments": "fp16"}])
def test_unknown_choices_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        training_memory(V3, H800, Layout(16, 64, 64), 4096, 7680, **wrong)
