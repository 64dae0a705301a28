"""Tensors in and out of files, to the bit."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rorqual.checkpoint import tensors
from rorqual.checkpoint.shards import read_header
from rorqual.errors import CheckpointError

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.float16, torch.bool, torch.uint8, torch.float64, torch.int32)


def some(dtype: torch.dtype, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return (
        torch.randint(0, 2, shape, generator=generator).to(dtype)
        if dtype == torch.bool
        else (torch.randn(shape, generator=generator) * 9).to(dtype)
    )


def test_every_dtype_is_read_by_the_safetensors_library_and_back(tmp_path: Path) -> None:
    values = {f"{dtype}": some(dtype, 3, 5) for dtype in DTYPES} | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4)}
    checksums = tensors.write_file(
        tmp_path / "x.safetensors", [tensors.item(name, value) for name, value in values.items()], {"format": "pt"}
    )
    theirs = safetensors.torch.load_file(tmp_path / "x.safetensors")
    entries = read_header(tmp_path / "x.safetensors")
    with (tmp_path / "x.safetensors").open("rb") as file:
        for name, value in values.items():
            assert torch.equal(theirs[name], value) and theirs[name].dtype == value.dtype
            ours = tensors.read(file, entries[name], checksums[name])
            assert torch.equal(ours, value) and ours.dtype == value.dtype
    assert all(entry.begin % value.element_size() == 0 for entry, value in ((entries[name], value) for name, value in values.items()))


def test_nan_payloads_and_negative_zero_survive(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC00001, 0xFF800001 - 2**32, -(2**31), 1], dtype=torch.int32)
    tensors.write_file(tmp_path / "x", [tensors.item("a", bits.view(torch.float32))])
    with (tmp_path / "x").open("rb") as file:
        assert torch.equal(tensors.read(file, read_header(tmp_path / "x")["a"]).view(torch.int32), bits)


@settings(max_examples=30)
@given(rows=st.integers(0, 7), columns=st.integers(0, 7), transposed=st.booleans(), start=st.integers(0, 3))
def test_views_are_written_and_filled_in_place(
    tmp_path_factory: pytest.TempPathFactory, rows: int, columns: int, transposed: bool, start: int
) -> None:
    path = tmp_path_factory.mktemp("views") / "x"
    whole = torch.arange((rows + start) * (columns + 2), dtype=torch.float32).view(rows + start, columns + 2)
    view = whole[start:, 1 : 1 + columns]
    view = view.T if transposed else view
    tensors.write_file(path, [tensors.item("a", view)])
    holder = torch.full_like(whole, -1.0)
    target = holder[start:, 1 : 1 + columns]
    with path.open("rb") as file:
        tensors.read_into(file, read_header(path)["a"], target.T if transposed else target)
    assert torch.equal(target, whole[start:, 1 : 1 + columns])
    assert (holder == -1).sum() == whole.numel() - view.numel()


def test_conversion_happens_on_the_way(tmp_path: Path) -> None:
    values = torch.tensor([1.0, 1.001, 34.54])
    tensors.write_file(tmp_path / "x", [tensors.item("a", values, torch.bfloat16)])
    entry = read_header(tmp_path / "x")["a"]
    assert entry.dtype == "BF16"
    target = torch.zeros(3)
    with (tmp_path / "x").open("rb") as file:
        tensors.read_into(file, entry, target)
    assert target.tolist() == [1.0, 1.0, 34.5]


def test_a_wrong_byte_and_a_missing_one_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checksums = tensors.write_file(path, [tensors.item("a", torch.arange(8.0))])
    assert checksums == {"a": zlib.crc32(torch.arange(8.0).numpy().tobytes())}
    entry = read_header(path)["a"]
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with path.open("rb") as file, pytest.raises(CheckpointError, match=r"x\.safetensors is corrupt: the checksum of bytes"):
        tensors.read(file, entry, checksums["a"])
    path.write_bytes(raw[:-1])
    with path.open("rb") as file, pytest.raises(CheckpointError, match=r"x\.safetensors ended before byte"):
        tensors.read(file, entry)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'a' has dtype torch.complex64"):
        tensors.write_file(tmp_path / "x", [tensors.item("a", torch.zeros(2, dtype=torch.complex64))])
    with pytest.raises(CheckpointError, match=r"'a' has shape \(2,\), \(3,\) was announced"):
        tensors.write_file(tmp_path / "x", [tensors.Item("a", torch.float32, (3,), lambda: torch.zeros(2))])


def test_same_values_compares_bytes_in_blocks(tmp_path: Path) -> None:
    a = torch.arange(100.0)
    b = a.clone()
    b[77] += 1
    tensors.write_file(
        tmp_path / "x", [tensors.item(name, value) for name, value in (("a", a), ("twin", a), ("b", b), ("c", a[:99]), ("d", a.bfloat16()))]
    )
    entries = read_header(tmp_path / "x")
    with (tmp_path / "x").open("rb") as file:
        for name, same in (("twin", True), ("b", False), ("c", False), ("d", False)):
            assert tensors.same_values((file, entries["a"]), (file, entries[name]), block=32) is same
