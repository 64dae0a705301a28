"""The reader by itself: what the facade `hf.load` promises is in test_hf*.py."""

from __future__ import annotations

from rorqual.checkpoint import hf, reader


def test_the_facade_is_the_reader():
    assert hf.load is reader.load
