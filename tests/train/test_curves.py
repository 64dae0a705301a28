"""The values that the curves show."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from rorqual.train.curves import Curves
from rorqual.train.history import History


def plots(markup: str) -> dict[str, Any]:
    """Title of each drawn plot, and its data."""
    found = re.findall(r'<h3>([^<]*)</h3>(?:<p>[^<]*</p>)?</figcaption>.*?<script type="application/json">(.*?)</script>', markup, re.S)
    return {title: json.loads(data) for title, data in found}


def train(steps: int, **values: Any) -> list[dict[str, Any]]:
    return [{"step": i, "tokens": 100 * i, **{key: value(i) for key, value in values.items()}} for i in range(1, steps + 1)]


def test_loss_is_smoothed_without_lag() -> None:
    history = History(train=train(401, main_loss=lambda i: 1000.0 - i))
    series = {s["name"]: s for s in plots(Curves(history, []).learning(None, None))["Loss"]["series"]}
    raw, smooth = series["main, each step"], series["main (train, smoothed)"]
    assert raw["x"] == smooth["x"] == [100 * i for i in range(1, 402)]
    assert smooth["y"] == pytest.approx(raw["y"])


def test_validation_source_of_the_run_stands_first() -> None:
    rows = [
        {"step": 10 * i, "tokens": i, "source": source, "loss": 2.0, "bpb": bpb, "mtp_acceptance": 0.5}
        for i in (1, 2)
        for source, bpb in (("prose", 3.0), ("code", 2.2))
    ]
    drawn = plots(Curves(History(validation=rows), [], "code").learning(1.8, 1.6))
    assert [(s["name"], s["color"], s["y"]) for s in drawn["Bits per byte"]["series"]] == [("code", 1, [2.2, 2.2]), ("prose", 4, [3, 3])]
    assert drawn["Bits per byte"]["rules"] == [{"y": 1.8, "name": "gzip −9"}, {"y": 1.6, "name": "xz"}]
    assert [s["name"] for s in drawn["Loss"]["series"]] == ["main, validation on code"]
    assert drawn["MTP acceptance"]["percent"] is True


def test_other_measurements_at_the_end_stay_apart() -> None:
    rows = [{"step": i, "tokens": i, "source": "code", "bpb": 2.5, "weights": "raw"} for i in (1, 2)]
    rows += [{"step": 2, "tokens": 2, "source": "code", "bpb": 2.4, "weights": "ema", "final": True}]
    rows += [{"step": 2, "tokens": 2, "source": "code", "bpb": 2.3, "weights": "raw", "final": True, "sliding": True}]
    series = plots(Curves(History(validation=rows), [], "code").learning(None, None))["Bits per byte"]["series"]
    assert [(s["name"], s["y"]) for s in series] == [
        ("code", [2.5, 2.5]), ("code, moving average", [2.4]), ("code, whole set, overlapping windows", [2.3]),
    ]  # fmt: skip


def test_max_vio_and_bias_per_layer() -> None:
    rows = train(2, max_vio=lambda i: [0.5 * i, 0.25], bias_min=lambda i: [-0.1, None], bias_max=lambda i: [0.2, 0.3])
    drawn = plots(Curves(History(train=rows), ["layer 1", "layer 2 (MTP)"]).experts())
    assert [(s["name"], s["y"], s["ramp"]) for s in drawn["MaxVio per layer"]["series"]] == [
        ("layer 1", [0.5, 1], 0),
        ("layer 2 (MTP)", [0.25, 0.25], 1),
    ]
    assert [(s["low"], s["y"]) for s in drawn["Router bias range"]["series"]] == [([-0.1, -0.1], [0.2, 0.2]), ([None, None], [0.3, 0.3])]


def test_many_steps_per_layer_become_means_of_stretches() -> None:
    rows = train(600, max_vio=lambda i: [float(i % 4)])
    series = plots(Curves(History(train=rows), []).experts())["MaxVio per layer"]["series"][0]
    assert len(series["x"]) == 150
    assert set(series["y"]) == {1.5}


def test_heat_map_is_load_over_the_mean() -> None:
    loads = [{"step": 1, "tokens": 5, "load": [[2, 0, 1, 1], [0, 0, 0, 0]]}, {"step": 2, "tokens": 9, "load": [[1, 1, 1, 1], [4, 0, 0, 0]]}]
    drawn = plots(Curves(History(loads=loads), ["layer 3"]).experts())
    assert drawn["layer 3"]["values"] == [[2, 1], [0, 1], [1, 1], [1, 1]]
    assert drawn["MoE block 1"]["values"] == [[None, 4], [None, 0], [None, 0], [None, 0]]
    assert drawn["layer 3"]["x"] == [1, 2]


def test_large_models_show_some_layers_and_say_so() -> None:
    loads = [{"step": 1, "load": [[1, 1]] * 58}]
    markup = Curves(History(loads=loads), []).experts()
    assert "12 of 58 layers" in markup
    drawn = plots(markup)
    assert len(drawn) == 12
    assert {"MoE block 0", "MoE block 57"} <= drawn.keys()


def test_what_was_not_recorded_is_named() -> None:
    curves = Curves(History(), [])
    text = "".join((curves.learning(None, None), curves.experts(), curves.schedules(), curves.speed()))
    for name in ("Loss", "Bits per byte", "MTP acceptance", "Gradient norm", "MaxVio per layer", "Router bias range", "Expert load over time",
                 "Learning rate", "Batch size, sequences", "Bias update speed γ", "MTP loss weight λ", "Tokens per second",
                 "Share of the measured GEMM ceiling", "Memory in use, bytes", "Balance loss"):  # fmt: skip
        assert f'data-gap="{name}"' in text
    assert "<figure" not in text


@pytest.mark.parametrize("load", [[], [[]], [1, 2], "x", [["a", None]], [[1], [2, 3]]])
def test_odd_loads_do_not_break_the_page(load: Any) -> None:
    assert Curves(History(loads=[{"step": 1, "load": load}]), []).experts()
