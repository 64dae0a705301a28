"""Search: every feasible layout is found, sorted by step time, and refusals are counted by reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rorqual.planner.activations import POLICIES
from rorqual.planner.hardware import hardware
from rorqual.planner.memory import training_memory
from rorqual.planner.search import enough, search
from rorqual.planner.step import least_seconds
from rorqual.presets import preset

ARGUMENTS = {"tokens": 1e12, "batch_sequences": 64, "seq_len": 4096, "recompute": POLICIES}


def test_feasible_layouts_come_fastest_first() -> None:
    found = search(preset("v2_lite_16b"), hardware("h100"), 8, **ARGUMENTS)
    seconds = [one.prediction.step_seconds for one in found.feasible]
    assert seconds == sorted(seconds) and len(seconds) > 5 and found.nearest is None
    assert all(one.memory.fits and one.layout.gpus == 8 for one in found.feasible)
    assert all(one.bubble == 0 for one in found.feasible if one.layout.pp == 1)
    assert sum(found.refused.values()) > 0


@pytest.mark.parametrize(
    ("name", "gpu", "gpus", "batch"),
    [("v2_lite_16b", "h100", 16, 64), ("v2_lite_16b", "a100", 24, 96), pytest.param("v2_236b", "h100", 256, 1024, marks=pytest.mark.slow)],
)
def test_the_best_alone_is_the_first_of_all(name: str, gpu: str, gpus: int, batch: int) -> None:
    arguments = {**ARGUMENTS, "batch_sequences": batch}
    every, best = (search(preset(name), hardware(gpu), gpus, **arguments, best_only=only) for only in (False, True))
    assert best.feasible == every.feasible[:1] and best.refused == every.refused
    for one in every.feasible:
        assert least_seconds(preset(name), hardware(gpu), one.layout, 4096, batch) <= one.prediction.step_seconds * (1 + 1e-9)


def test_enough_gpus_are_found_where_too_few_are_given() -> None:
    found = enough(preset("v3_671b"), hardware("h100"), 8, batch_sequences=64, seq_len=4096)
    assert found is not None
    gpus, layout = found
    assert layout.gpus == gpus and training_memory(preset("v3_671b"), hardware("h100"), layout, 4096, 64).fits
    assert not search(preset("v3_671b"), hardware("h100"), gpus // 2, **ARGUMENTS).feasible
    assert enough(preset("v3_671b"), replace(hardware("h100"), memory=1e9), 8, batch_sequences=64, seq_len=4096) is None


def test_where_nothing_fits_the_nearest_is_shown() -> None:
    found = search(preset("v3_671b"), hardware("h100"), 8, **ARGUMENTS)
    assert not found.feasible and found.nearest is not None and found.nearest.memory.total > 80e9
    assert found.refused["needs more memory than the device has"] > 0
