"""Search: every feasible layout is found, sorted by step time, and refusals are counted by reason."""

from __future__ import annotations

from rorqual.planner.activations import POLICIES
from rorqual.planner.hardware import hardware
from rorqual.planner.search import search
from rorqual.presets import preset

ARGUMENTS = {"tokens": 1e12, "batch_sequences": 64, "seq_len": 4096, "recompute": POLICIES}


def test_feasible_layouts_come_fastest_first() -> None:
    found = search(preset("v2_lite_16b"), hardware("h100"), 8, **ARGUMENTS)
    seconds = [one.prediction.step_seconds for one in found.feasible]
    assert seconds == sorted(seconds) and len(seconds) > 5 and found.nearest is None
    assert all(one.memory.fits and one.layout.gpus == 8 for one in found.feasible)
    assert all(one.bubble == 0 for one in found.feasible if one.layout.pp == 1)
    assert sum(found.refused.values()) > 0


def test_where_nothing_fits_the_nearest_is_shown() -> None:
    found = search(preset("v3_671b"), hardware("h100"), 8, **ARGUMENTS)
    assert not found.feasible and found.nearest is not None and found.nearest.memory.total > 80e9
    assert found.refused["needs more memory than the device has"] > 0
