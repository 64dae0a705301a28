"""Layouts: what is refused, with the numbers and the nearest that works; uneven stages."""

from __future__ import annotations

import pytest

from rorqual.errors import ConfigError
from rorqual.planner.layout import Layout, check, parse, stage_layers
from rorqual.presets import preset

V3 = preset("v3_671b")


def test_the_reports_layout_is_accepted() -> None:
    layout = parse("pp16,dp128,ep64")
    check(layout, V3, 15360, 2048)
    assert layout.gpus == 2048 and layout.model_copies == 2 and str(layout) == "pp16,dp128,ep64"
    assert parse("dp8") == Layout(1, 8, 1) and parse("DP8, ep2") == Layout(1, 8, 2)


def test_parameters_may_be_shared_out_too() -> None:
    layout = parse("dp8,ep4,zero3", "1f1b")
    assert layout == Layout(1, 8, 4, "1f1b", 3) and str(layout) == "pp1,dp8,ep4,zero3" and layout.replicas == 2
    check(layout, V3, 8)


def test_uneven_stages_leave_the_last_one_short() -> None:
    """61 layers on 16 stages: the last has one, beside head and MTP module."""
    assert [len(one) for one in stage_layers(V3, 16)] == [4] * 15 + [1]
    for stages in range(1, 62):
        layers = [layer for one in stage_layers(V3, stages) for layer in one]
        assert layers == list(range(61)) and all(len(one) for one in stage_layers(V3, stages))


@pytest.mark.parametrize(
    ("text", "batch", "gpus", "words"),
    [
        ("pp16,dp128,ep64", 15360, 1024, r"16 x 128 = 2048 GPUs, not 1024; use dp64"),
        ("pp3,dp8", 64, 16, r"pp must divide 16, e.g. pp2"),
        ("pp16,dp128,ep48", 15360, None, r"ep \(48\) must divide dp \(128\); use ep32"),
        ("pp2,dp96,ep96", 192, None, r"256 experts cannot be spread over ep 96; use ep64"),
        ("pp64,dp2", 512, None, r"64 stages for 61 layers; use pp of at most 61"),
        ("pp2,dp7", 100, None, r"batch of 100 sequences cannot be split over dp 7; use 105"),
        ("pp4,dp2", 18, None, r"even number of micro-batches, at least 8, not 9; use 10"),
        ("pp3,dp2", 24, None, r"even number of ranks, not 3; use 4"),
        ("pp0,dp2", 24, None, "at least 1"),
        ("dp8,zero2", 24, None, "zero must be 1 .* or 3"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_nearest_that_does(text: str, batch: int, gpus: int | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(parse(text), V3, batch, gpus)


def test_dense_models_and_other_schedules() -> None:
    with pytest.raises(ConfigError, match="no routed experts"):
        check(Layout(1, 4, 2), V3.with_(n_routed_experts=0), 8)
    with pytest.raises(ConfigError, match="schedule 'gpipe' is not known"):
        check(Layout(2, 1, 1, "gpipe"), V3, 8)
    check(Layout(3, 2, 2, "1f1b"), V3, 6)
    assert Layout(4, 1, 1, "dualpipev").num_stages == 8 and Layout(4, 1, 1, "dualpipev").model_copies == 1


@pytest.mark.parametrize("text", ["tp4", "pp", "pp4;dp2", "pp2,pp4", "", "pp-1"])
def test_text_that_is_no_layout(text: str) -> None:
    with pytest.raises(ConfigError, match="write for example pp16,dp128,ep64"):
        parse(text)
