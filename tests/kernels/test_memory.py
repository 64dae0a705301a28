"""Free memory as the system tells it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rorqual.kernels import memory


def test_the_available_part_is_read_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       24000000 kB\nMemFree:          100 kB\nMemAvailable:   2000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    assert memory.available_bytes() == 2_048_000
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    assert memory.available_bytes() is None


def test_memory_in_large_pages_is_zero_and_one_piece_behind_the_other() -> None:
    given = memory.LargePages()
    pieces = [
        torch.frombuffer(pages, dtype=torch.uint8, count=n, offset=at) for n in (1, 100, 60 << 20, 9 << 20) for pages, at in [given.take(n)]
    ]
    places = [piece.data_ptr() for piece in pieces]
    assert places[0] % memory.LARGE_PAGE == 0 and [place - places[0] for place in places[1:3]] == [64, 192]
    assert places[3] % memory.LARGE_PAGE == 0 and not any(int(piece[-1]) for piece in pieces)  # a new mapping
    del given
    pieces[1].fill_(7)
    assert int(pieces[1].sum()) == 700 and int(pieces[0]) == int(pieces[2][0]) == 0


FAULTS = """
import resource
import torch
from rorqual.kernels import memory
kept = memory.keep_freed()
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(4 << 20) for _ in range(4)]
    del blocks
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
def test_a_block_that_was_freed_costs_no_faults_again() -> None:
    """64 MiB in four blocks are 16,384 pages of 4 KiB."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    kept, faults = map(int, done.stdout.split())
    if not kept:
        pytest.skip("the C library has no such switch")
    assert faults < 1000
