"""Bytes on the wires, against the figures of the report's layout."""

from __future__ import annotations

from rorqual.planner.communication import all_to_all_bytes, combine_bytes, destinations, dispatch_bytes, pipeline_bytes
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
