"""What reaches the page's script: exact numbers, breaks instead of NaN, no way out of the data element."""

from __future__ import annotations

import json
import re
from typing import Any

from rorqual.html.plots import HeatMap, Lines, Series, describe, embed, figure


def payload(markup: str) -> Any:
    found = re.search(r'<script type="application/json">(.*?)</script>', markup)
    assert found is not None
    return json.loads(found[1])


def test_embed_cannot_end_its_element() -> None:
    text = embed({"a": "</script><!--&\u2028\ud800"})
    assert not set(text) & set("<>&\u2028")
    assert text.isascii()
    assert json.loads(text) == {"a": "</script><!--&\u2028\ufffd"}


def test_embed_numbers() -> None:
    assert embed([1.0, 0.1234567, float("nan"), float("-inf"), 123456, 2_000_000.0, True, None, 1e-9]) == (
        "[1,0.12346,null,null,123456,2000000,true,null,1e-09]"
    )


def test_lines_reach_the_script() -> None:
    plot = Lines(
        "Loss", [Series("main", [16384.0, 1_638_400.0], [5.5, None], 2, "points"), Series("layer", [1], [0.5], 0.25, low=[0.1])],
        note="n", x_label="tokens", log_y=True, rules=[(1.8, "gzip")], steps=[(16384, 4)], x_min=0,
    )  # fmt: skip
    data = payload(figure(plot))
    assert data["series"][0] == {"name": "main", "x": [16384, 1638400], "y": [5.5, None], "kind": "points", "low": None, "color": 2}
    assert data["series"][1]["ramp"] == 0.25
    assert data["series"][1]["low"] == [0.1]
    assert (data["logY"], data["rules"], data["steps"], data["xMin"]) == (True, [{"y": 1.8, "name": "gzip"}], [[16384, 4]], 0)


def test_long_counts_of_tokens_stay_exact() -> None:
    data = payload(figure(Lines("t", [Series("s", [14_800_123_456_789.0], [1.0])])))
    assert data["series"][0]["x"] == [14_800_123_456_789]


def test_heat_map_reaches_the_script() -> None:
    data = payload(figure(HeatMap("layer 1", [1, 2], ["0", "1"], [[0.5, 1.004], [None, 1.5]])))
    assert data["values"] == [[0.5, 1], [None, 1.5]]
    assert (data["type"], data["rows"], data["centre"], data["limit"]) == ("heat", ["0", "1"], 1, 2)


def test_description_for_readers_without_a_screen() -> None:
    plot = Lines("Loss", [Series("main", [1, 2], [5.0, 2.25]), Series("raw", [1, 2], [5.0, 2.0], kind="faint"), Series("none", [], [])])
    assert describe(plot) == "Loss: main from 5 to 2.25"
    assert 'aria-label="Loss: main from 5 to 2.25"' in figure(plot)
    assert describe(Lines("x", [])) == "x: no values"
    assert describe(HeatMap("h", [1], ["0"], [[1.0]])) == "h: heat map of 1 rows over 1 points in time"
