"""The object that `rorqual plan` prints: its keys, its table, its explanations."""

from __future__ import annotations

import json

import pytest

from rorqual.planner.hardware import hardware
from rorqual.planner.layout import parse
from rorqual.planner.page import plan_page
from rorqual.planner.report import (
    REASONS,
    Request,
    comparison_explanations,
    explanations,
    markdown_table,
    serving_explanations,
    training_plan,
)
from rorqual.planner.serving import plan_serving
from rorqual.planner.step import training_step
from rorqual.presets import preset

REQUEST = Request("v3_671b", preset("v3_671b"), hardware("h800"), parse("pp16,dp128,ep64"), 14.8e12, 15360, 4096, is_report=True)
PLAN = training_plan(REQUEST)


def test_predictions_stand_on_top_and_arithmetic_apart() -> None:
    for name in ("gpu_hours_total", "gpu_hours_per_trillion_tokens", "cost_usd", "step_seconds", "tokens_per_day", "gflop_per_token", "mfu_causal",
                 "mfu_non_causal"):  # fmt: skip
        assert isinstance(PLAN[name], float)
    assert PLAN["arithmetic"]["cost_usd"] == 5_576_000 and PLAN["arithmetic"]["gpu_hours_total"] == 2_788_000
    assert PLAN["kv_bytes_per_token"] == 70_272 and PLAN["llama3_405b"]["cache_bytes_other"] == 516_096
    assert json.loads(json.dumps(PLAN)) == json.loads(json.dumps(PLAN))
    other = training_plan(Request("x", preset("v2_lite_16b"), hardware("h100"), parse("dp8,ep8", "1f1b"), 1e11, 64, 4096))
    assert "arithmetic" not in other and other["gpu_hours_context_extension"] == 0


def test_the_table_says_which_figure_is_which() -> None:
    kinds = {row["kind"] for row in PLAN["comparison"]}
    assert kinds == {"prediction", "arithmetic"}
    for row in PLAN["comparison"]:
        assert row["difference"] == pytest.approx(row["ours"] / row["report"] - 1)
        if row["kind"] == "arithmetic":
            assert abs(row["difference"]) < 0.011
    wide = {row["what"] for row in PLAN["comparison"] if row["kind"] == "prediction" and abs(row["difference"]) > 0.15}
    assert wide <= set(REASONS)


def test_the_markdown_table_has_every_row() -> None:
    lines = markdown_table(PLAN["comparison"]).splitlines()
    assert len(lines) == len(PLAN["comparison"]) + 2 and "| cost_usd | 5,576,000 | 5,576,000 | +0.0% | arithmetic |" in lines


def test_plans_of_serving_and_comparisons_are_explained() -> None:
    plan = plan_serving(REQUEST.config, REQUEST.device, 32, 4096)
    found = {name for name, formula, inputs in serving_explanations(REQUEST.config, REQUEST.device, 32, 4096, plan) if formula and inputs}
    assert {"largest_batch", "decode seconds", "prefill_seconds"} <= found
    assert {"flop_other", "gpu_hours_ratio"} <= {name for name, _, _ in comparison_explanations(PLAN["llama3_405b"])}


def test_sensitivity_is_proportional() -> None:
    by_price, by_mfu = PLAN["sensitivity"]["by_price"], PLAN["sensitivity"]["by_mfu"]
    assert by_price["4"] == pytest.approx(4 * by_price["1"]) and by_price["2"] == pytest.approx(PLAN["cost_usd"])
    assert by_mfu["0.30"] / by_mfu["0.50"] == pytest.approx(5 / 3)


def test_every_headline_figure_is_explained() -> None:
    explained = {figure for figure, formula, inputs in explanations(REQUEST, PLAN) if formula and inputs}
    assert {"gflop_per_token", "step_seconds", "fitted constants", "gpu_hours_total", "cost_usd", "mfu_causal", "memory"} <= explained


def test_the_page_holds_all_of_it() -> None:
    step = training_step(REQUEST.config, REQUEST.device, REQUEST.layout, 4096, 15360)
    text = plan_page(PLAN, step.simulation)
    for words in (
        "Of the fullest GPU",
        "activations held over time",
        "the schedule of all micro-batches",
        "routed experts",
        "Time of a step",
        "by price of a GPU hour",
        "by share of the BF16 peak",
        "Beside the report",
        "does not contain",
        "<rect",
    ):
        assert words in text, words
    assert "http://" not in text.replace("http://www.w3.org", "") and text.count("<html") == 1
