"""The texts of `rorqual plan` that its own tests do not reach: no price, what has no cost, bytes by size."""

from __future__ import annotations

from rorqual.cli import plan_text
from rorqual.planner.hardware import hardware
from rorqual.planner.layout import parse
from rorqual.planner.report import Request, training_plan
from rorqual.presets import preset


def test_parts_are_sorted_and_empty_ones_left_out() -> None:
    assert plan_text.parts_of({"weights": 1e9, "fp8_copies": 0.0, "dispatch_buffers": 2e9}) == "dispatch buffers 2 GB, weights 1 GB"


def test_without_a_price_the_text_says_so() -> None:
    plan = training_plan(Request("lite", preset("v2_lite_16b"), hardware("gb200"), parse("dp8,ep8", "1f1b"), 1e12, 64, 4096))
    text = plan_text.training(plan)
    assert "no price: give --price" in text and "lite on 8 x gb200, pp1,dp8,ep8, 1f1b" in text and "difference" not in text
    memory = {"total": 1e9, "parts": {"weights": 1e9}}
    row = {
        "layout": "dp8",
        "schedule": "1f1b",
        "step_seconds": 1.0,
        "bubble": 0.0,
        "exposed_communication": 0.0,
        "gpu_hours_total": 10.0,
        "cost_usd": None,
        "memory": memory,
    }
    assert "      -  1 GB: weights 1 GB" in plan_text.layouts({"layouts": [row], "refused": {}})
