"""Sketches and the search for them, against sets of shingles made by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest

from rorqual.data import overlap
from rorqual.data.overlap import WIDTH, Finder, shingles, sketch

MASK = (1 << 64) - 1


def _text(seed: int, length: int) -> bytes:
    draw = random.Random(seed)
    return bytes(draw.choice(b"abcdefghij \n\t") for _ in range(length))


def _by_hand(raw: bytes) -> list[int]:
    """Sum of (byte + 1) * factor^(31 - place), over bytes that are not white space."""
    dense = bytes(byte for byte in raw if byte not in b" \t\n\r\x0b\x0c")
    found = []
    for start in range(len(dense) - WIDTH + 1):
        value = 0
        for byte in dense[start : start + WIDTH]:
            value = (value * 0x9E3779B97F4A7C15 + byte + 1) & MASK
        found.append(value)
    return found


@pytest.mark.parametrize("length", [0, 31, 40, 700])
@pytest.mark.parametrize("block", [1, 50, 1 << 14])
def test_shingles_by_hand(monkeypatch: pytest.MonkeyPatch, length: int, block: int) -> None:
    monkeypatch.setattr(overlap, "_BLOCK", block)
    found = [value for part in shingles(_text(1, length)) for value in part.tolist()]
    assert found == _by_hand(_text(1, length))


@pytest.mark.parametrize(("length", "size"), [(20, 0), (60, 4), (640, 10), (100_000, 64)])
def test_a_sketch_has_one_shingle_per_64_bytes(length: int, size: int) -> None:
    found = sketch(_text(2, length))
    assert len(found) == size and bool(np.all(found[1:] > found[:-1]))
    assert set(found.tolist()) <= {value for part in shingles(_text(2, length)) for value in part.tolist()}


def test_a_sketch_does_not_depend_on_blocks_or_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = _text(3, 5000)
    whole = sketch(raw)
    same_size = raw.replace(b" ", b"\n").replace(b"\t", b" ")
    assert sketch(same_size).tolist() == whole.tolist()
    monkeypatch.setattr(overlap, "_BLOCK", 77)
    assert sketch(raw).tolist() == whole.tolist()


def test_search_finds_what_is_there_and_nothing_else() -> None:
    held, other = [_text(seed, 900) for seed in (4, 5, 6)], _text(7, 5000)
    table = np.unique(np.concatenate([sketch(raw) for raw in held]))
    finder = Finder(table)
    finder.search(other)
    assert not finder.found.any()
    finder.search(other + held[1].replace(b" ", b"\n") + other)
    assert table[finder.found].tolist() == sketch(held[1]).tolist()
    finder.search(held[0][:450])
    inside = set(_by_hand(held[0][:450])) & set(sketch(held[0]).tolist())
    assert set(table[finder.found].tolist()) == inside | set(sketch(held[1]).tolist())


def test_no_shingle_spans_documents_joined_by_a_byte_of_no_text() -> None:
    raw = _text(8, 100)
    finder = Finder(sketch(raw))
    finder.search(raw[:50] + b"\xff" + raw[50:])
    assert finder.found.tolist() == [value in set(_by_hand(raw[:50]) + _by_hand(raw[50:])) for value in sketch(raw).tolist()]


def test_nothing_to_search() -> None:
    finder = Finder(np.zeros(0, np.uint64))
    finder.search(_text(9, 100))
    assert finder.found.shape == (0,)
