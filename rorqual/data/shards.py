"""Writes files whole or not at all, and token shards of bounded size with their offsets. Report section 4.1.

A shard ends before the document that would take it over its limit, so where shards end depends on the documents alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

SHARD_DOCUMENTS: Final = 1 << 21
"""Most documents of a shard: their offsets are in memory while it is written."""


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when it is complete and on disk; nothing is left of it after an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class ShardWriter:
    """Shards of one split of one source: documents in the order they are added."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype[Any], shard_bytes: int) -> None:
        self._folder = folder
        self._split = split
        self._dtype = dtype
        self._limit = max(1, shard_bytes // dtype.itemsize)
        self._file: BinaryIO | None = None
        self._lengths: list[NDArray[np.int64]] = []
        self._hash = hashlib.sha256()
        self._tokens = self._documents = 0
        self._largest = -1
        self.shards: list[dict[str, Any]] = []

    def add(self, tokens: NDArray[Any], lengths: NDArray[np.int64]) -> None:
        """Documents one after the other and their lengths in tokens."""
        ends = np.cumsum(lengths)
        first, start = 0, 0
        while first < len(lengths):
            room = int(np.searchsorted(ends, start + self._limit - self._tokens, side="right")) - first
            room = min(room, SHARD_DOCUMENTS - self._documents, len(lengths) - first)
            if room <= 0 and not self._documents:
                room = 1  # a document larger than the limit has a shard of its own
            if room > 0:
                stop = int(ends[first + room - 1])
                self._write(tokens[start:stop], lengths[first : first + room])
                first, start = first + room, stop
            if first < len(lengths):
                self.close()

    def _write(self, tokens: NDArray[Any], lengths: NDArray[np.int64]) -> None:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self._folder / f"{self._split}-{len(self.shards):05d}.bin", "wb")  # noqa: SIM115
        data = np.ascontiguousarray(tokens, dtype=self._dtype)
        self._file.write(data.data)
        self._hash.update(data.data)
        if len(data):
            self._largest = max(self._largest, int(data.max()))
        self._lengths.append(np.asarray(lengths, dtype=np.int64))
        self._tokens += len(data)
        self._documents += len(lengths)

    def close(self) -> None:
        """End the current shard, if there is one."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        name = f"{self._split}-{len(self.shards):05d}"
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(self._lengths))]).astype("<i8")
        with open(self._folder / f"{name}.offsets.npy", "wb") as file:
            np.save(file, offsets)
        self._hash.update(offsets.tobytes())
        self.shards.append(
            {
                "file": f"{name}.bin",
                "tokens": self._tokens,
                "documents": self._documents,
                "max_token": self._largest,
                "sha256": self._hash.hexdigest(),
            }
        )
        self._lengths = []
        self._hash = hashlib.sha256()
        self._tokens = self._documents = 0
        self._largest = -1

    def summary(self) -> dict[str, Any]:
        """The split's entry in the index, without its bytes of text."""
        self.close()
        return {
            "shards": self.shards,
            "tokens": sum(shard["tokens"] for shard in self.shards),
            "documents": sum(shard["documents"] for shard in self.shards),
        }
