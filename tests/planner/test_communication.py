"""Bytes on the wires, against the figures of the report's layout."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rorqual.planner.communication import (
    all_to_all_bytes,
    all_to_all_seconds,
    combine_bytes,
    destinations,
    dispatch_bytes,
    fsdp_bytes,
    link,
    pipeline_bytes,
    zero1_bytes,
)
from rorqual.planner.hardware import hardware
from rorqual.presets import preset

V3 = preset("v3_671b")


def test_payloads_of_the_report() -> None:
    """7,392 bytes dispatched per destination node, 29,568 for four; 14,336 and 57,344 combined."""
    assert dispatch_bytes(V3) == 7_392 and combine_bytes(V3) == 14_336
    assert destinations(V3, 64, 8) == 4 and all_to_all_bytes(V3, 64, 8) == 29_568 + 57_344
    assert pipeline_bytes(V3, 4096) == 2 * 7168 * 4096


def test_fewer_places_than_choices() -> None:
    assert destinations(V3, 1, 8) == 0 and destinations(V3, 8, 8) == 8 and destinations(V3, 16, 8) == 2
    lite = preset("v2_lite_16b")
    assert destinations(lite, 64, 8) == 6  # no groups: as many nodes as choices
    assert destinations(V3.with_(n_routed_experts=0), 8, 8) == 0


def test_without_fp8_tokens_go_out_in_bf16() -> None:
    assert dispatch_bytes(V3, fp8=False) == 14_336 == combine_bytes(V3)
    assert all_to_all_bytes(V3, 64, 8, fp8=False) == 4 * 28_672


def test_two_levels_of_the_network() -> None:
    """671B at EP64 on H800: 86,912 bytes over 50 GB/s between nodes, 8 x 21,728 over 160 GB/s inside: the first is slower, by 1.6."""
    h800 = hardware("h800")
    assert all_to_all_seconds(V3, 64, h800) == pytest.approx(86_912 / 50e9)
    assert all_to_all_seconds(V3, 64, replace(h800, scale_out=160e9)) == pytest.approx(8 * 21_728 / 160e9)
    assert all_to_all_seconds(V3, 8, h800) == pytest.approx(8 * 21_728 / 160e9)
    assert all_to_all_seconds(V3, 1, h800) == 0
    assert all_to_all_seconds(V3, 64, hardware("a100")) == pytest.approx(4 * 28_672 / 25e9)
    assert link(h800, 8) == 160e9 and link(h800, 9) == 50e9


def test_exchange_over_data_parallelism() -> None:
    """A million parameters on 4 devices: each sends three quarters, 6 bytes a parameter and step; shared out, 2 and 6 a micro-batch."""
    assert zero1_bytes(1e6, 4) == 4.5e6 and zero1_bytes(1e6, 1) == 0
    assert fsdp_bytes(1e6, 4) == (1.5e6, 4.5e6)
