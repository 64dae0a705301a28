"""Memory of this package on one device, part by part; the measured peaks are in test_estimate_measured.py."""

from __future__ import annotations

import pytest

from rorqual.errors import ConfigError
from rorqual.planner.estimate import MARGIN, PROGRAM, adapted_parameters, base_bytes, lora_parameters, serving_estimate, training_estimate
from rorqual.planner.params import count
from tests.planner.configurations import V2_LITE, V3
from tests.tiny import t0

WHOLE = count(t0()).total + count(t0()).mtp


def test_what_a_run_holds_throughout() -> None:
    fp32 = training_estimate(t0(), micro_batch=2, length=64).parts
    assert fp32["weights"] == 4 * WHOLE and fp32["moments"] == 8 * WHOLE and "master" not in fp32
    bf16 = training_estimate(t0(), micro_batch=2, length=64, dtype="bf16", moments="bf16", ema=True).parts
    assert (bf16["weights"], bf16["master"], bf16["moments"], bf16["average"]) == (2 * WHOLE, 4 * WHOLE, 4 * WHOLE, 4 * WHOLE)
    made = training_estimate(t0(), micro_batch=2, length=64)
    assert made.total == pytest.approx(made.tensors * (1 + MARGIN) + PROGRAM) and made.as_json()["tensors"] == sum(made.parts.values())


def test_what_saves_memory_does() -> None:
    arguments = {"micro_batch": 16, "length": 128, "validation": False}
    plain = training_estimate(t0(), **arguments).tensors
    for change in (
        {"recompute": ("norms", "mla_up", "swiglu")},
        {"micro_batch": 8},
        {"length": 64},
        {"moments": "bf16"},
        {"mtp": False},
        {"dtype": "bf16"},
    ):
        assert training_estimate(t0(), **{**arguments, **change}).tensors < plain, change
    for change in ({"ema": True}, {"batch": 64}, {"frozen_copies": 1}, {"cache_bytes": 1e6}):
        assert training_estimate(t0(), **{**arguments, **change}).tensors > plain, change


def test_an_update_over_all_tensors_at_once() -> None:
    """Gradients 4 bytes, their scaled copy 4, denominators 4, and BF16 moments widened, 8: more than a small micro-batch keeps."""
    parts = training_estimate(t0(), micro_batch=1, length=16, moments="bf16", foreach=True).parts
    assert parts["gradients"] == 4 * WHOLE and parts["update"] == 16 * WHOLE and "activations" not in parts
    assert training_estimate(t0(), micro_batch=1, length=16, foreach=True).parts["update"] == 8 * WHOLE
    assert "update" not in training_estimate(t0(), micro_batch=32, length=128, foreach=True).parts


def test_lora_by_hand() -> None:
    """T0's attention: (64+48) + (48+96) + (64+40) + (32+128) + (64+64) = 648 a block; dense 3 (64+160), shared 3 (64+32), routed 8 x that."""
    assert lora_parameters(t0(), 8, ("attention",)) == 8 * 4 * 648
    assert lora_parameters(t0(), 8) == 8 * (4 * 648 + 672 + 3 * 288)
    assert lora_parameters(t0(), 8, ("experts",)) == 8 * 3 * 8 * 288
    assert adapted_parameters(t0()) == 4 * (64 * 48 + 48 * 96 + 64 * 40 + 32 * 128 + 64 * 64) + 3 * 64 * 160 + 3 * 3 * 64 * 32
    assert adapted_parameters(t0(), ("experts",)) == 3 * 8 * 3 * 64 * 32
    tuned = training_estimate(V2_LITE, micro_batch=1, length=2048, dtype="bf16", compiled=False, lora_rank=16)
    assert tuned.parts["moments"] == 8 * lora_parameters(V2_LITE, 16) and tuned.parts["weights"] > 2 * count(V2_LITE).total
    assert tuned.total < 80e9 < training_estimate(V2_LITE, micro_batch=1, length=2048, dtype="bf16", compiled=False).total
    assert training_estimate(V2_LITE, micro_batch=1, length=2048, dtype="bf16", lora_rank=16, base="fp8").tensors < tuned.tensors


def test_serving_by_hand() -> None:
    """671B in FP8: 70,272 / 61 x 62 / 2 x 4 bytes of FP32 cache a token with the MTP module's; the cache given is what is taken."""
    small = serving_estimate(t0(), sequences=2, context=100)
    assert small.parts["weights"] == 4 * WHOLE and small.parts["cache"] == 2 * 112 * 4 * 40 * 4
    assert serving_estimate(t0(), sequences=2, context=100, drafts=0).parts["cache"] == 2 * 112 * 3 * 40 * 4
    large = serving_estimate(V3, weights="fp8", cache_bytes=1e9)
    assert large.parts["cache"] == 1e9 and large.parts["weights"] == base_bytes(V3, "fp8") == pytest.approx(685e9, rel=0.01)
    assert serving_estimate(V3).parts["cache"] == 512 * 2**20


@pytest.mark.parametrize(
    "call",
    [
        lambda: training_estimate(t0(), micro_batch=0, length=64),
        lambda: training_estimate(t0(), micro_batch=1, length=64, dtype="fp16"),
        lambda: training_estimate(t0(), micro_batch=1, length=64, moments="fp8"),
        lambda: training_estimate(t0(), micro_batch=1, length=64, base="int4"),
        lambda: lora_parameters(t0(), 0),
        lambda: lora_parameters(t0(), 8, ("gate",)),
        lambda: serving_estimate(t0(), weights="int4"),
    ],
)
def test_what_makes_no_sense_is_refused(call) -> None:
    with pytest.raises(ConfigError):
        call()
