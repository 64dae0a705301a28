"""The schedules at every boundary of report section 4.2."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rorqual.errors import ConfigError
from rorqual.train.schedules import BatchSchedule, GammaSchedule, LambdaSchedule, LearningRateSchedule

B = 10**9
T = 10**12


def spec_lr(tokens: int, step: int) -> float:
    if step < 2000:
        return 2.2e-4 * step / 2000
    if tokens < 10e12:
        return 2.2e-4
    if tokens < 14.3e12:
        x = (tokens - 10e12) / 4.3e12
        return 2.2e-5 + 0.5 * (2.2e-4 - 2.2e-5) * (1 + math.cos(math.pi * x))
    return 2.2e-5 if tokens < 14.633e12 else 7.3e-6


@pytest.mark.parametrize(
    ("step", "tokens", "expected"),
    [
        (0, 0, 0.0),
        (1, 12_582_912, 1.1e-7),
        (1000, 30 * B, 1.1e-4),
        (1999, 60 * B, 2.2e-4 * 1999 / 2000),
        (2000, 60 * B, 2.2e-4),
        (150_000, 10 * T - 1, 2.2e-4),
        (160_000, 10 * T, 2.2e-4),
        (190_000, 10 * T + 2150 * B, 1.21e-4),  # half of the cosine: the mean of both ends
        (230_000, 14_300 * B - 1, 2.2e-5),
        (230_000, 14_300 * B, 2.2e-5),
        (235_000, 14_633 * B - 1, 2.2e-5),
        (235_001, 14_633 * B, 7.3e-6),
        (242_000, 14_800 * B, 7.3e-6),
    ],
)
def test_learning_rate_at_the_reports_boundaries(step: int, tokens: int, expected: float) -> None:
    assert LearningRateSchedule().value(step, tokens) == pytest.approx(expected, rel=1e-9, abs=1e-18)


@given(st.integers(0, 250_000), st.integers(0, 148 * 10**11))
def test_learning_rate_equals_the_written_formula(step: int, tokens: int) -> None:
    if step < 2000:
        tokens %= 10 * T
    assert LearningRateSchedule().value(step, tokens) == pytest.approx(spec_lr(tokens, step), rel=1e-12)


def test_batch_ramp() -> None:
    ramp = BatchSchedule()
    assert [ramp.value(t) for t in (0, 469 * B - 1, 469 * B, 14_800 * B)] == [3072, 15359, 15360, 15360]
    assert ramp.value(469 * B // 2) == (3072 + 15360) // 2
    by_128 = BatchSchedule(multiple_of=128)
    assert by_128.value(469 * B // 2) == 9216
    assert by_128.value(469 * B - 1) == 15360 - 128
    assert BatchSchedule.constant(48).value(0) == BatchSchedule.constant(48).value(10**15) == 48


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_batch_never_shrinks_and_stays_whole(a: int, b: int) -> None:
    ramp = BatchSchedule(start=96, end=960, ramp_tokens=3 * 10**11, multiple_of=32)
    low, high = sorted((a, b))
    assert 96 <= ramp.value(low) <= ramp.value(high) <= 960
    assert ramp.value(low) % 32 == 0


def test_gamma_and_lambda() -> None:
    gamma, weight = GammaSchedule(), LambdaSchedule()
    assert [gamma.value(t) for t in (0, 14_300 * B - 1, 14_300 * B, 14_800 * B)] == [1e-3, 1e-3, 0.0, 0.0]
    assert [weight.value(t) for t in (0, 10 * T - 1, 10 * T, 14_800 * B)] == [0.3, 0.3, 0.1, 0.1]


def test_scaling_to_the_reports_own_total_changes_nothing() -> None:
    total = 14_800 * B
    scaled = LearningRateSchedule.scaled(total)
    assert (scaled.constant_until_tokens, scaled.cosine_until_tokens, scaled.tail_until_tokens) == (10 * T, 14_300 * B, 14_633 * B)
    assert (scaled.cosine_to, scaled.final) == (pytest.approx(2.2e-5), pytest.approx(7.3e-6))
    assert BatchSchedule.scaled(total, 3072, 15360) == BatchSchedule()
    assert GammaSchedule.scaled(total) == GammaSchedule()
    assert LambdaSchedule.scaled(total) == LambdaSchedule()


def test_scaling_to_a_small_run() -> None:
    lr = LearningRateSchedule.scaled(1_480_000, peak=1e-3, warmup_steps=10)
    assert (lr.constant_until_tokens, lr.cosine_until_tokens, lr.tail_until_tokens) == (1_000_000, 1_430_000, 1_463_300)
    assert lr.value(100, 1_215_000) == pytest.approx((1e-3 + 1e-4) / 2)
    assert lr.value(100, 1_430_000) == pytest.approx(1e-4)
    assert lr.value(100, 1_463_300) == pytest.approx(1e-3 * 7.3 / 220)
    assert GammaSchedule.scaled(1_480_000).until_tokens == 1_430_000
    assert LambdaSchedule.scaled(1_480_000).until_tokens == 1_000_000
    assert BatchSchedule.scaled(1_480_000, 8, 16).ramp_tokens == 46_900


def test_two_drops_and_constant() -> None:
    lr = LearningRateSchedule.two_drops(1000, peak=4.2e-4, warmup_steps=2, factor=0.316, first=0.8, second=0.9)
    assert [lr.value(5, t) for t in (0, 799, 800, 899, 900, 1000)] == pytest.approx(
        [4.2e-4, 4.2e-4, 1.3272e-4, 1.3272e-4, 4.193952e-5, 4.193952e-5]
    )
    assert lr.value(1, 0) == pytest.approx(2.1e-4)
    assert {LearningRateSchedule.constant(7.3e-6, 100).value(s, t) for s in (0, 9) for t in (0, 99, 100, 500)} == {7.3e-6}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LearningRateSchedule(peak=0.0), r"learning_rate.peak \(0.0\) must be a finite number above 0"),
        (lambda: LearningRateSchedule(peak=float("nan")), "learning_rate.peak"),
        (lambda: LearningRateSchedule(warmup_steps=-1), r"warmup_steps \(-1\) must be a whole number of at least 0"),
        (lambda: LearningRateSchedule(cosine_until_tokens=5), r"cosine_until_tokens \(5\) must be at least .*constant_until_tokens"),
        (lambda: BatchSchedule(start=4, end=2), r"batch.end \(2\) must be at least batch.start \(4\)"),
        (lambda: BatchSchedule(start=3, end=8, multiple_of=4), r"batch.start \(3\) must be a multiple of batch.multiple_of \(4\); use 4$"),
        (lambda: BatchSchedule(start=True), "batch.start"),
        (lambda: GammaSchedule(initial=-1e-3), "bias_update_speed.initial"),
        (lambda: LambdaSchedule(final=float("inf")), "mtp_loss_weight.final"),
    ],
)
def test_impossible_schedules_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]
