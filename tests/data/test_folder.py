"""A data folder that does not fit its index is refused by name before a token is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rorqual.data.folder import BuiltFolder
from rorqual.errors import DataError
from tests.data.folders import edit, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shards = [[[5, 6, 7], [8]], [[]], [[9, 10], [], [11, 12, 13, 99]]]
    return write_folder(tmp_path, {"code": shards}, {"code": ([[3, 4]], b"ab")})


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_documents_are_numbered_through_the_shards(tmp_path: Path, dtype: str) -> None:
    shards = [[[5, 6, 7], [8]], [[]], [[9, 10], [], [11, 12, 13, 99]]]
    built = BuiltFolder.open(write_folder(tmp_path, {"code": shards}, {"code": ([[3, 4]], b"ab")}, dtype=dtype))
    store = built.train["code"]
    assert store.lengths.tolist() == [3, 1, 0, 2, 0, 4]
    assert [store.read(i, 0, int(n)).tolist() for i, n in enumerate(store.lengths)] == [d for shard in shards for d in shard]
    assert store.read(5, 1, 3).tolist() == [12, 13]
    assert (store.num_documents, store.num_tokens, built.validation["code"].num_tokens) == (6, 10, 2)


def test_ids_over_the_vocabulary_are_refused(folder: Path) -> None:
    edit(folder, vocab_size=99)
    with pytest.raises(DataError, match=r"code/train-00002.bin holds token id 99, but ids must be below 99"):
        BuiltFolder.open(folder)


def test_cut_shard(folder: Path) -> None:
    (folder / "code/train-00000.bin").write_bytes(b"\0\0\0\0\0\0\0")
    with pytest.raises(DataError, match=r"train-00000.bin has 7 bytes; the index says 4 tokens of 2 bytes"):
        BuiltFolder.open(folder)


@pytest.mark.parametrize("offsets", [[0, 3], [0, 5, 4], [1, 3, 4], [0, 3, 5]])
def test_offsets_that_do_not_fit(folder: Path, offsets: list[int]) -> None:
    np.save(folder / "code/train-00000.offsets.npy", np.array(offsets))
    with pytest.raises(DataError, match="does not fit its shard"):
        BuiltFolder.open(folder)


def test_pickled_offsets_are_not_loaded(folder: Path) -> None:
    np.save(folder / "code/train-00000.offsets.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be opened"):
        BuiltFolder.open(folder)


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    (folder / "code/train-00002.bin").unlink()
    with pytest.raises(DataError, match="train-00002.bin"):
        BuiltFolder.open(folder)
    with pytest.raises(DataError, match="is not a built data folder; make one with `rorqual data build`"):
        BuiltFolder.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format 2; this version reads format 1"),
        ({"dtype": "float32"}, "not an index of this format"),
        ({"sources": None}, "not an index of this format"),
        ({"eos_id": 100}, r"eos_id \(100\) must be between 0 and vocab_size - 1 \(99\)"),
        (
            {"sources": {"../x": {"train": {"shards": [{"file": "a.bin", "tokens": 0, "documents": 0}]}}}},
            "files must lie in the folder of their source",
        ),
        (
            {"sources": {"code": {"train": {"shards": [{"file": "../../a.bin", "tokens": 0, "documents": 0}]}}}},
            "files must lie in the folder",
        ),
    ],
)
def test_bad_index(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(DataError, match=message):
        BuiltFolder.open(folder)


def test_index_that_is_not_json(folder: Path) -> None:
    (folder / "index.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        BuiltFolder.open(folder)
