"""`rorqual simulate`: figures, picture, trace, page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rorqual.cli import simulate
from rorqual.errors import ConfigError


def test_figures_and_closed_form(capsys: pytest.CaptureFixture[str]) -> None:
    for name, pp, want in (("1f1b", 8, 21), ("zb1p", 8, 7), ("dualpipe", 8, 6), ("dualpipev", 4, 6)):
        assert simulate.main(["--schedule", name, "--pp", str(pp), "--micro-batches", "20", "--json"]) == 0
        out = json.loads(capsys.readouterr().out)
        assert out["bubble_most"] == pytest.approx(want) == out["closed_form"]


def test_the_picture_has_a_line_for_each_rank(capsys: pytest.CaptureFixture[str]) -> None:
    simulate.main(["--schedule", "1f1b", "--pp", "3", "--micro-batches", "4"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split()[2] for line in lines if line.startswith("rank")]
    assert len(rows) == 3 and len({len(row) for row in rows}) == 1
    assert rows[2].startswith(".") and rows[2].count("F") > 0 and set("".join(rows)) == {"F", "B", "."}
    assert "table 2 gives 6" in "\n".join(lines)


def test_trace_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, page = tmp_path / "out.json", tmp_path / "out.html"
    simulate.main(["--pp", "4", "--micro-batches", "8", "--pair", "2.4", "--trace", str(trace), "--html", str(page)])
    events = json.loads(trace.read_text())["traceEvents"]
    assert len({event["tid"] for event in events}) == 4 and "overlapped pair" in page.read_text()
    assert f"written: {trace}" in capsys.readouterr().out


def test_uneven_stages(capsys: pytest.CaptureFixture[str]) -> None:
    """Ten layers on four stages are 3, 3, 3 and 1: the last works a third of the time, and waits the rest."""
    command = ["--schedule", "1f1b", "--pp", "4", "--micro-batches", "8", "--layers", "10", "--json"]
    assert simulate.main(command) == 0
    out = json.loads(capsys.readouterr().out)
    assert [round(out["seconds"] - waits, 6) for waits in out["bubble"]] == [24, 24, 24, 8]
    with pytest.raises(ConfigError, match=r"--layers \(3\) must be at least the number of stages \(4\)"):
        simulate.main([*command[:6], "--layers", "3"])


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="even number of micro-batches"):
        simulate.main(["--pp", "4", "--micro-batches", "9"])
    with pytest.raises(ConfigError, match="cannot be written"):
        simulate.main(["--trace", str(tmp_path / "no" / "out.json")])
