"""The step model against the published step of 2,048 H800, and its parts by hand."""

from __future__ import annotations

import pytest

from rorqual.planner.hardware import hardware
from rorqual.planner.layout import Layout, parse
from rorqual.planner.params import count
from rorqual.planner.step import chunk, held_parameters, optimizer_seconds, rank_stages, training_step
from rorqual.presets import preset

V3, H800, REPORT = preset("v3_671b"), hardware("h800"), parse("pp16,dp128,ep64")


def test_the_published_step_is_predicted() -> None:
    """19.93 s within 5 %, the overlapped phase of 13.95 s within 15 %."""
    step = training_step(V3, H800, REPORT, 4096, 15360)
    assert step.seconds == pytest.approx(19.926, rel=0.05)
    assert step.phases["1F1B"] == pytest.approx(13.95, rel=0.15)
    assert sum(step.phases.values()) == pytest.approx(step.seconds)


def test_a_chunk_of_the_profile() -> None:
    """Four MoE layers at EP64: 118.2 ms of compute for forward and backward, and all-to-alls that fit under it."""
    one = chunk(V3, H800, REPORT, 7, 4096, mtp=True)
    assert one.forward + one.backward == pytest.approx(0.1182, rel=0.01)
    assert 2 * one.communication < one.forward + one.backward
    assert one.communication == pytest.approx(4 * 4096 * 86_912 / 50e9)


def test_long_steps_are_extrapolated_exactly() -> None:
    """Beyond the warm-up every round costs the same, so a step of many micro-batches follows from two short ones."""
    layout = Layout(4, 2, 2)
    config = preset("v2_lite_16b")
    seconds = [training_step(config, H800, layout, 512, 2 * n).seconds for n in (32, 40, 48, 64)]
    assert seconds[1] - seconds[0] == pytest.approx(seconds[2] - seconds[1], rel=1e-6)
    assert seconds[3] - seconds[2] == pytest.approx(2 * (seconds[1] - seconds[0]), rel=1e-6)


def test_without_a_pipeline_a_step_is_its_micro_batches() -> None:
    step = training_step(preset("v2_lite_16b"), H800, Layout(1, 8, 8, "1f1b"), 512, 32)
    assert step.phases["bubble"] == pytest.approx(0) and step.phases["1F1B"] == 0
    one = step.chunks[0]
    assert step.phases["1F"] == pytest.approx(4 * (one.forward * (1 - 20 / 132) + one.communication))
    assert step.exposed_communication == pytest.approx(4 * 2 * one.communication)


def test_shared_out_parameters_are_fetched_under_the_compute() -> None:
    """V2-Lite, 64 devices over the network: 2 (n - 1) / n bytes of 15.7B parameters at 50 GB/s are longer than a short micro-batch."""
    config = preset("v2_lite_16b")
    short = training_step(config, H800, Layout(1, 64, 1, "1f1b", 3), 512, 64)
    one = short.chunks[0]
    assert one.gather_forward == pytest.approx(2 * count(config).total * 63 / 64 / 50e9, rel=1e-4)
    assert one.gather_backward == pytest.approx(3 * one.gather_forward)
    assert short.phases["1F"] == pytest.approx(one.gather_forward) and short.exposed_communication > 0
    long, plain = (training_step(config, H800, Layout(1, 8, 1, "1f1b", zero), 65536, 8) for zero in (3, 1))
    assert long.exposed_communication == 0 and long.phases["1F"] == pytest.approx(plain.phases["1F"]) and long.optimizer < plain.optimizer


def test_every_micro_batch_adds_its_gradients() -> None:
    """8 bytes a parameter held: without expert parallelism a chunk pays for all 256 experts, which is why layouts spread them."""
    alone, spread = (chunk(V3, H800, Layout(16, 128, ep), 7, 4096, True) for ep in (1, 64))
    assert alone.backward - spread.backward == pytest.approx(8 * 4 * (256 - 4) * 44_040_192 / 3350e9)


@pytest.mark.parametrize("schedule", ["1f1b", "zb1p", "dualpipe", "dualpipev"])
def test_every_parameter_is_held_by_as_many_ranks_as_the_layout_says(schedule: str) -> None:
    layout = Layout(4, 8, 8, schedule)
    parameters = count(V3)
    held = held_parameters(V3, layout)
    want = parameters.total + parameters.mtp
    experts = sum(experts for experts, _ in held) * layout.ep
    assert (experts + sum(rest for _, rest in held)) / layout.model_copies == pytest.approx(want, rel=1e-6)
    assert sorted(stage for stages in rank_stages(layout) for stage in stages) == sorted(
        list(range(layout.num_stages)) * layout.model_copies
    )


def test_more_replicas_cost_more_exchange() -> None:
    alone, shared = (optimizer_seconds(V3, H800, Layout(16, dp, 64), True) for dp in (64, 128))
    assert shared > alone > 0
