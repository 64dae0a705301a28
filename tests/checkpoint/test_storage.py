"""The storage under torch.distributed.checkpoint: its files, its index, and what it refuses."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rorqual.checkpoint import resume
from rorqual.checkpoint.storage import SafetensorsReader, SafetensorsWriter, read_index
from rorqual.errors import CheckpointError

TENSORS = {"a": torch.arange(24.0).view(4, 6), "b": torch.tensor([1, -(2**40)]), "c": torch.randn(5).bfloat16(), "s": torch.tensor(3.0)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return resume.save(tmp_path / "step-00000001", TENSORS, {"step": 1, "text": 'a"body":{}b}', "loss": 0.1})


def rewrite(folder: Path, change: Any) -> None:
    """Changes the index's body and signs it anew: a forger, not an accident."""
    body = read_index(folder)
    change(body)
    text = json.dumps(body, separators=(",", ":"))
    (folder / "index.json").write_text(f'{{"format":1,"checksum":{zlib.crc32(text.encode())},"body":{text}}}\n')


def test_the_folder_is_safetensors_and_json_and_nothing_else(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "shard-00000.safetensors"]
    theirs = safetensors.torch.load_file(folder / "shard-00000.safetensors")
    assert set(theirs) == set(TENSORS) and all(torch.equal(theirs[name], value) for name, value in TENSORS.items())
    index = json.loads((folder / "index.json").read_text())
    assert index["format"] == 1 and index["body"]["state"] == {"step": 1, "text": 'a"body":{}b}', "loss": 0.1}
    assert index["body"]["tensors"]["c"]["dtype"] == "BF16" and index["body"]["tensors"]["a"]["shape"] == [4, 6]


def test_a_pickle_in_the_folder_is_not_looked_at(folder: Path) -> None:
    marker = folder.parent / "ran"
    (folder / ".metadata").write_bytes(f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode())
    reader = SafetensorsReader(folder)
    assert set(reader.read_metadata().state_dict_metadata) == set(TENSORS) and not marker.exists()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["index.json", "shard-00000.safetensors"]), st.data())
def test_a_file_cut_anywhere_is_refused_by_name(folder: Path, name: str, data: st.DataObject) -> None:
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 2))])
    try:
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            resume.load(folder, {key: torch.empty_like(value) for key, value in TENSORS.items()})
    finally:
        path.write_bytes(whole)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["index.json", "shard-00000.safetensors"]), st.data())
def test_a_bit_flipped_anywhere_is_refused_by_name(folder: Path, name: str, data: st.DataObject) -> None:
    path = folder / name
    whole = path.read_bytes()
    first = 8 + int.from_bytes(whole[:8], "little") if name.endswith("safetensors") else 0
    place, bit = data.draw(st.integers(first, len(whole) - 2)), data.draw(st.integers(0, 7))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
    try:
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            resume.load(folder, {key: torch.empty_like(value) for key, value in TENSORS.items()})
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body["files"].update({"../outside.safetensors": 8}), "names the file '../outside.safetensors'"),
        (lambda body: body["files"].update({"gone.safetensors": 8}), "gone.safetensors is missing"),
        (lambda body: body["tensors"]["a"]["chunks"][0].__setitem__(0, "/etc/passwd"), "the entry of tensor 'a' does not fit"),
        (lambda body: body["tensors"]["a"]["chunks"][0].__setitem__(1, "b"), "the entry of tensor 'a' does not fit"),
        (lambda body: body["tensors"]["a"]["chunks"][0].__setitem__(2, [1, 0]), "the entry of tensor 'a' does not fit"),
        (lambda body: body["tensors"]["a"]["chunks"].clear(), "its chunks do not fill it"),
        (lambda body: body["tensors"]["a"].update(shape=[2**62, 6]), "its chunks do not fill it"),
        (lambda body: body["tensors"]["a"].update(dtype="BF16"), "the entry of tensor 'a' does not fit"),
        (lambda body: body["tensors"]["a"].update(shape="x"), "the entry of tensor 'a' does not fit"),
        (lambda body: body["tensors"].update(a=None), "the entry of tensor 'a' does not fit"),
    ],
)
def test_a_forged_index_reads_nothing_outside_the_folder(folder: Path, change: Any, message: str) -> None:
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
        SafetensorsReader(folder)


def test_another_format_and_no_checkpoint_are_named(folder: Path, tmp_path: Path) -> None:
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text.replace('"format":1', '"format":2'))
    with pytest.raises(CheckpointError, match="has format 2; this version reads format 1"):
        SafetensorsReader(folder)
    (folder / "index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="has format None"):
        SafetensorsReader(folder)
    with pytest.raises(CheckpointError, match="is not a training checkpoint"):
        SafetensorsReader(tmp_path)
    assert not SafetensorsReader.validate_checkpoint_id(tmp_path) and SafetensorsReader.validate_checkpoint_id(folder)


def test_what_is_not_a_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'step' is not a tensor; numbers and strings go into the state"):
        resume.save(tmp_path / "x", {"step": 3}, {})  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == [] and SafetensorsWriter.validate_checkpoint_id("x")
