"""The device table: peaks as published, prices with a source, devices from a file, and what a file may not say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rorqual.errors import ConfigError
from rorqual.planner.hardware import HARDWARE, Hardware, as_table, hardware


def test_every_device_says_where_its_figures_are_from() -> None:
    assert set(HARDWARE) == {"h800", "h100", "h200", "a100", "b200", "gb200", "mi300x", "laptop"}
    assert all(one.source and (one.price_source or one.price is None) for one in HARDWARE.values())
    assert len(as_table()) == len(HARDWARE)


def test_published_values() -> None:
    h800 = hardware("H800")
    assert (h800.bf16, h800.price, h800.scale_up / h800.scale_out) == (989.4e12, 2.0, 3.2)
    assert hardware("h200").memory == 141e9 and hardware("a100").linear_peak == 312e12 == hardware("a100").bf16
    assert h800.linear_peak == h800.fp8 == pytest.approx(2 * h800.bf16, rel=1e-3)


def test_a_device_from_a_file(tmp_path: Path) -> None:
    fields = {name: value for name, value in HARDWARE["h100"].__dict__.items() if name not in ("name", "price", "source", "price_source")}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(fields))
    assert hardware(path) == Hardware(name="mine", price=None, source=str(path), **fields)
    for change, words in (
        ({"colour": 1}, "unknown fields colour"), ({"bf16": None}, "bf16"), ({"bf16": "fast"}, "must be a number"), ({"memory": 0}, "positive"),
        ({"node_size": 0}, "node_size"), ({"price": -1}, "price"),
    ):  # fmt: skip
        path.write_text(json.dumps({**fields, **change}))
        with pytest.raises(ConfigError, match=words):
            hardware(path)
    path.write_text(json.dumps({"bf16": 1}))
    with pytest.raises(ConfigError, match="fields missing: fp8"):
        hardware(path)
    for text in ("{", "[]"):
        path.write_text(text)
        with pytest.raises(ConfigError):
            hardware(path)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="GPU 'h900' is not known; there are h800, h100"):
        hardware("h900")
