"""Exact duplicates: the first in input order stays, whatever the runs and partitions; the split is a share of hashes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from rorqual.data import dedup
from rorqual.data.dedup import RunFile, RunWriter, Split, duplicates, partitions


def _expected(texts: list[str]) -> list[int]:
    seen: set[str] = set()
    again = []
    for number, text in enumerate(texts):
        if text in seen:
            again.append(number)
        seen.add(text)
    return again


@pytest.mark.parametrize("run", [1, 7, 1000])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_against_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: int, parts: int) -> None:
    monkeypatch.setattr(dedup, "RUN", run)
    draw = random.Random(run)
    texts = [str(draw.randrange(60)) for _ in range(150)]
    split, files, base = Split(3, 0.5), [], 0
    for number, cut in enumerate((texts[:50], [], texts[50:140], texts[140:])):
        with open(tmp_path / str(number), "wb") as file:
            writer = RunWriter(file)
            for text in cut:
                writer.add(split.digest(text.encode()))
            writer.flush()
            writer.flush()
        assert sum(writer.runs) == len(cut) and max(writer.runs, default=0) <= run
        files.append(RunFile(str(tmp_path / str(number)), tuple(writer.runs), base))
        base += len(cut)
    monkeypatch.setattr(dedup, "PARTITION", -(-len(texts) // parts))
    intervals = partitions(len(texts))
    assert len(intervals) == parts
    found = [duplicates(files, low, high) for low, high in intervals]
    assert all(np.all(np.diff(part) > 0) for part in found)
    assert sorted(np.concatenate(found).tolist()) == _expected(texts)


def test_equal_first_halves_are_not_equal_documents(tmp_path: Path) -> None:
    with open(tmp_path / "r", "wb") as file:
        writer = RunWriter(file)
        for tail in (b"a", b"b", b"a"):
            writer.add(b"\xff" * 8 + tail * 8)
        writer.flush()
    assert duplicates([RunFile(str(tmp_path / "r"), (3,), 10)], 2**63, 2**64).tolist() == [12]
    assert duplicates([RunFile(str(tmp_path / "r"), (3,), 10)], 0, 2**63).tolist() == []


@pytest.mark.parametrize("documents", [0, 1, dedup.PARTITION, dedup.PARTITION + 1, 20_000_000])
def test_partitions_cover_all_hashes_once(documents: int) -> None:
    found = partitions(documents)
    assert found[0][0] == 0 and found[-1][1] == 2**64
    assert all(one[1] == two[0] for one, two in zip(found, found[1:], strict=False))
    assert len(found) == max(1, -(-documents // dedup.PARTITION))


def test_the_split_is_a_share_of_hashes_under_a_seed() -> None:
    held = {seed: {n for n in range(4000) if (s := Split(seed, 0.1)).holds_out(s.digest(str(n).encode()))} for seed in (0, 1)}
    assert all(330 < len(numbers) < 470 for numbers in held.values()) and held[0] != held[1]
    more = Split(0, 0.2)
    assert held[0] < {n for n in range(4000) if more.holds_out(more.digest(str(n).encode()))}, "a larger rate only adds"
    assert not Split(0, 0.0).holds_out(b"\0" * 16)
    assert Split(0, 0.1).digest(b"x").hex() == Split(0, 0.9).digest(b"x").hex() != Split(1, 0.1).digest(b"x").hex()
