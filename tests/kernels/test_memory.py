"""Free memory as the system tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rorqual.kernels import memory


def test_the_available_part_is_read_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       24000000 kB\nMemFree:          100 kB\nMemAvailable:   2000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    assert memory.available_bytes() == 2_048_000
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    assert memory.available_bytes() is None
