"""Line numbers over ranges, near-duplicates by share, and blocks of bounded size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rorqual.data import merge
from rorqual.data.corpus import Range
from rorqual.data.dedup import Split
from rorqual.data.merge import LineNumbers, SketchTable
from rorqual.data.stages import SKETCH, Job


def _table(rows: list[tuple[int, int]]) -> SketchTable:
    table = np.array(rows, dtype=SKETCH)
    return SketchTable(table, np.unique(table["hash"]))


@pytest.mark.parametrize(
    ("share", "numbers"),
    [(0.0, [3, 8, 9]), (0.25, [3, 8, 9]), (0.5, [8, 9]), (0.51, [9]), (1.0, [9])],
)
def test_near_duplicates_by_share(share: float, numbers: list[int]) -> None:
    """Of the sketches of 3, 8, 9 and 12, a quarter, half, all and nothing was seen; something must have been."""
    table = _table([(3, 1), (3, 2), (3, 3), (3, 4), (8, 4), (8, 5), (9, 4), (12, 6)])
    assert table.near_duplicates(np.isin(table.hashes, [4]), share).tolist() == numbers


def test_no_held_out_document() -> None:
    assert _table([]).near_duplicates(np.zeros(0, dtype=bool), 0.0).tolist() == []


def test_sketches_are_numbered_over_the_corpus_and_duplicates_left_out(tmp_path: Path) -> None:
    job = Job(str(tmp_path), "text", Split(0, 0.5), False, 0.0, 0.0)
    (tmp_path / "scan").mkdir()
    for number, rows in enumerate(([(0, 7), (0, 9)], [], [(1, 7), (2, 5)])):
        np.array(rows, dtype=SKETCH).tofile(job.path("scan", number, "sketch"))
    table = merge.load_sketch(job, 3, [0, 2, 4], np.array([0, 0, 0, 0, 0, 1, 0], dtype=np.uint8))
    assert table.rows.tolist() == [(0, 7), (0, 9), (6, 5)] and table.hashes.tolist() == [5, 7, 9]


def test_line_numbers_run_through_the_ranges_of_a_file() -> None:
    lines = LineNumbers()
    first, second = Range("a", "jsonl", ("x",), 0, 9), Range("a", "jsonl", ("x",), 9, 18)
    lines.add(first, 4)
    assert lines.before(second) == 4 and lines.before(Range("a", "jsonl", ("y",))) == 0
    whole = Range("a", "files", ("x",))
    lines.add(whole, 7)
    assert lines.before(whole) == 0 and lines.before(second) == 4


def test_blocks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "_BLOCK_DOCUMENTS", 3)
    monkeypatch.setattr(merge, "_BLOCK_TOKENS", 10)
    lengths = np.array([4, 6, 1, 99, 0, 0, 0, 0, 9, 2])
    assert [(block.start, block.stop) for block in merge._blocks(lengths)] == [(0, 2), (2, 3), (3, 4), (4, 7), (7, 9), (9, 10)]
