"""Shards end before the document that would take them over their limit, however documents arrive; files are whole or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from rorqual.data import shards
from rorqual.data.shards import ShardWriter, atomic

LENGTHS = [3, 0, 4, 1, 12, 2, 2, 2, 2, 2, 0]
TOKENS = np.arange(sum(LENGTHS), dtype=np.uint16)


def _write(folder: Path, batches: list[int], limit: int = 8) -> ShardWriter:
    writer = ShardWriter(folder, "train", np.dtype("<u2"), 2 * limit)
    first = start = 0
    for count in batches:
        lengths = np.array(LENGTHS[first : first + count], dtype=np.int64)
        writer.add(TOKENS[start : start + lengths.sum()], lengths)
        first, start = first + count, start + int(lengths.sum())
    return writer


def test_shards_by_hand(tmp_path: Path) -> None:
    summary = _write(tmp_path, [len(LENGTHS)]).summary()
    assert [(shard["tokens"], shard["documents"], shard["max_token"]) for shard in summary["shards"]] == [(8, 4, 7), (12, 1, 19), (8, 4, 27), (2, 2, 29)]  # fmt: skip
    assert (summary["tokens"], summary["documents"]) == (30, 11)
    assert [np.load(tmp_path / f"train-0000{n}.offsets.npy").tolist() for n in range(4)] == [
        [0, 3, 3, 7, 8],
        [0, 12],
        [0, 2, 4, 6, 8],
        [0, 2, 2],
    ]
    assert np.concatenate([np.fromfile(tmp_path / shard["file"], dtype="<u2") for shard in summary["shards"]]).tolist() == TOKENS.tolist()


@pytest.mark.parametrize("batches", [[1] * 11, [2, 9], [5, 0, 6], [10, 1]])
def test_batches_do_not_matter(tmp_path: Path, batches: list[int]) -> None:
    assert _write(tmp_path / "a", batches).summary() == _write(tmp_path / "b", [11]).summary()
    assert [path.read_bytes() for path in sorted((tmp_path / "a").iterdir())] == [
        path.read_bytes() for path in sorted((tmp_path / "b").iterdir())
    ]


def test_documents_of_a_shard_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_DOCUMENTS", 2)
    assert [shard["documents"] for shard in _write(tmp_path, [11], 1000).summary()["shards"]] == [2, 2, 2, 2, 2, 1]


def test_no_documents_no_shards(tmp_path: Path) -> None:
    assert ShardWriter(tmp_path / "x", "train", np.dtype("<u2"), 8).summary() == {"shards": [], "tokens": 0, "documents": 0}
    assert not (tmp_path / "x").exists()


def test_hashes_tell_documents_apart(tmp_path: Path) -> None:
    """The same tokens with other borders are other data."""
    hashes = set()
    for number, lengths in enumerate(([2, 2], [1, 3], [4])):
        writer = ShardWriter(tmp_path / str(number), "train", np.dtype("<u2"), 100)
        writer.add(TOKENS[:4], np.array(lengths))
        hashes.add(writer.summary()["shards"][0]["sha256"])
    assert len(hashes) == 3


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic(tmp_path / "f") as file:
        file.write(b"half")
        raise KeyboardInterrupt

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"), atomic(tmp_path / "f") as file:
        patch.setattr(os, "fsync", full)
        file.write(b"half")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f", b"old")]
    with atomic(tmp_path / "f") as file:
        file.write(b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
