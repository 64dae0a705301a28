"""The writer by itself: what the facade `hf.export` promises is in test_hf*.py."""

from __future__ import annotations

from rorqual.checkpoint import hf, writer


def test_the_facade_is_the_writer():
    assert hf.export is writer.export
