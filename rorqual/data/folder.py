"""Opens what `data build` wrote: index, token shards and document offsets, checked before a token is used. Report section 4.1.

Shards are memory-mapped, so opening costs the document lengths only. A folder is refused when a file is missing or has another
size than the index says, when offsets do not fit, and when a token id reaches the vocabulary's size (an embedding row that does
not exist would fail late, or read a wrong row on a device).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rorqual.errors import DataError

FORMAT = 1
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_CHUNK = 1 << 24


class TokenStore:
    """Documents of one split of one source, numbered through its shards."""

    def __init__(self, root: Path, source: str, split: Mapping[str, Any], dtype: np.dtype[Any], vocab_size: int) -> None:
        self._shards: list[NDArray[Any]] = []
        self._offsets: list[NDArray[np.int64]] = []
        for entry in split["shards"]:
            tokens, offsets = _open_shard(root, source, entry, dtype)
            largest = entry["max_token"] if "max_token" in entry else _largest(tokens)
            if largest >= vocab_size:
                raise DataError(
                    f"{source}/{entry['file']} holds token id {largest}, but ids must be below {vocab_size}; "
                    "use the tokenizer and vocab_size that the folder was built with, or build it again"
                )
            self._shards.append(tokens)
            self._offsets.append(offsets)
        counts = [len(offsets) - 1 for offsets in self._offsets]
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        self.lengths: NDArray[np.int64] = np.concatenate([np.zeros(0, np.int64), *(np.diff(offsets) for offsets in self._offsets)])
        """Tokens of each document, without EOS."""

    @property
    def num_documents(self) -> int:
        """Documents of all shards."""
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents, without EOS."""
        return int(self.lengths.sum())

    def read(self, document: int, start: int, stop: int) -> NDArray[Any]:
        """Tokens start..stop-1 of a document, a view of the file."""
        shard = int(np.searchsorted(self._first, document, side="right")) - 1
        base = int(self._offsets[shard][document - int(self._first[shard])])
        return self._shards[shard][base + start : base + stop]


@dataclass(frozen=True)
class BuiltFolder:
    """The index of a data folder, and its stores by source."""

    path: Path
    fingerprint: str
    tokenizer: str
    vocab_size: int
    eos_id: int
    train: dict[str, TokenStore]
    validation: dict[str, TokenStore]
    text_files: dict[str, Path]

    @classmethod
    def open(cls, path: str | Path) -> BuiltFolder:
        """Checks and maps a folder; DataError says what does not fit."""
        root = Path(path)
        index = _read_index(root / "index.json")
        try:
            dtype: np.dtype[Any] = DTYPES[index["dtype"]]
            vocab_size = int(index["vocab_size"])
            train, validation, texts = {}, {}, {}
            for name, entry in index["sources"].items():
                train[name] = TokenStore(root, name, entry["train"], dtype, vocab_size)
                validation[name] = TokenStore(root, name, entry["validation"], dtype, vocab_size)
                texts[name] = _inside(root, name, entry["validation"]["text_file"])
            built = cls(root, index["fingerprint"], index["tokenizer"], vocab_size, int(index["eos_id"]), train, validation, texts)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{root / 'index.json'} is not an index of this format: {error!r}; build the folder again") from None
        if not 0 <= built.eos_id < vocab_size:
            raise DataError(
                f"{root / 'index.json'}: eos_id ({built.eos_id}) must be between 0 and vocab_size - 1 ({vocab_size - 1}); build the folder again"
            )
        return built


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist, so {path.parent} is not a built data folder; make one with `rorqual data build`") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}; build the folder again") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found = index.get("format") if isinstance(index, dict) else type(index).__name__
        raise DataError(f"{path} has format {found!r}; this version reads format {FORMAT}, so build the folder again")
    return index


def _inside(root: Path, source: str, name: str) -> Path:
    """Path of a source's file; names in an index may not lead out of the folder."""
    file = root / source / Path(name).name
    if (
        Path(source).name != source
        or source in ("", ".", "..")
        or Path(name) not in (Path(Path(name).name), Path(source) / Path(name).name)
    ):
        raise DataError(f"{root / 'index.json'} names {source}/{name}; files must lie in the folder of their source")
    return file


def _open_shard(root: Path, source: str, entry: Mapping[str, Any], dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    tokens, documents = int(entry["tokens"]), int(entry["documents"])
    path = _inside(root, source, entry["file"])
    offsets_path = path.with_suffix(".offsets.npy")
    try:
        size = path.stat().st_size
        offsets = np.load(offsets_path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} or its offsets cannot be opened: {error}; restore the file or build the folder again") from None
    if size != tokens * dtype.itemsize:
        raise DataError(
            f"{path} has {size} bytes; the index says {tokens} tokens of {dtype.itemsize} bytes: the file is cut or changed, build the folder again"
        )
    fits = offsets.dtype == np.int64 and offsets.shape == (documents + 1,) and offsets[0] == 0 and offsets[-1] == tokens
    if not fits or (np.diff(offsets) < 0).any():
        raise DataError(
            f"{offsets_path} does not fit its shard: it must rise from 0 to {tokens} in {documents + 1} int64 values; build the folder again"
        )
    return (np.memmap(path, dtype=dtype, mode="r") if tokens else np.empty(0, dtype=dtype)), offsets


def _largest(tokens: NDArray[Any]) -> int:
    """Largest id of a shard, in pieces, so that a shard larger than memory is no trouble; -1 for an empty one."""
    return max((int(tokens[i : i + _CHUNK].max()) for i in range(0, len(tokens), _CHUNK)), default=-1)
