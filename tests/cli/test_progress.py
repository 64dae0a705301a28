"""A line when a stage ends, bars on a terminal, rates only where there are bytes to count."""

from __future__ import annotations

import re
import sys

import pytest

from rorqual.cli.progress import BuildProgress


def test_a_line_when_a_stage_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with BuildProgress() as progress:
        progress("scan", 0, 5_000_000)
        progress("scan", 2_000_000, 5_000_000)
        assert capsys.readouterr().err == ""
        progress("scan", 5_000_000, 5_000_000)
        progress("merge", 1, 1)
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"scan +\d+\.\d s  \d+\.\d MB/s", first) and re.fullmatch(r"merge +\d+\.\d s\s*", second)


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with BuildProgress() as progress:
        for done in (0, 1, 2):
            progress("encode", done, 2)
    printed = capsys.readouterr().err
    assert "encode" in printed and "100%" in printed and "MB/s" not in printed
