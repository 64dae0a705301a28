"""Bits per byte takes any text; its sums are tested with rorqual/eval/textbits.py."""

from __future__ import annotations

from rorqual.eval.tasks import catalog


def test_any_text(tmp_path):
    (tmp_path / "a.txt").write_text("whale", encoding="utf-8")
    task = catalog.task("bpb")
    assert [item.prompt for item in task.items(tmp_path)] == ["whale"] and task.shots == 0
