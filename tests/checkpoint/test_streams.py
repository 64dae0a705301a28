"""Incremental files: what safetensors reads back, and that a file with too few or too many bytes is never finished quietly."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from rorqual.checkpoint.streams import Planned, TensorFile, in_file_order
from rorqual.errors import CheckpointError

VALUES = {
    "codes": torch.arange(12, dtype=torch.uint8).view(4, 3).view(torch.float8_e4m3fn),
    "half": torch.arange(6, dtype=torch.bfloat16).view(3, 2),
    "wide": torch.arange(5, dtype=torch.float32),
    "empty": torch.zeros(0, 4),
}
NAMES = {torch.float8_e4m3fn: "F8_E4M3", torch.bfloat16: "BF16", torch.float32: "F32"}
PLAN = [Planned(name, NAMES[value.dtype], tuple(value.shape)) for name, value in VALUES.items()]


def test_row_by_row_gives_the_file_that_the_library_reads(tmp_path: Path) -> None:
    with TensorFile(tmp_path / "a", PLAN, {"format": "pt"}) as file:
        for planned in file.tensors():
            for row in VALUES[planned.name]:
                file.append(row.view(torch.uint8) if planned.dtype == "F8_E4M3" else row)
    back = safetensors.torch.load_file(tmp_path / "a")
    assert back.keys() == VALUES.keys()
    assert all(torch.equal(back[name].view(torch.uint8), value.view(torch.uint8)) for name, value in VALUES.items())
    with safetensors.safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_wide_elements_come_first_so_that_all_are_aligned() -> None:
    assert [one.name for one in in_file_order(PLAN)] == ["wide", "empty", "half", "codes"]


def test_wrong_amounts_and_dtypes_are_refused(tmp_path: Path) -> None:
    def write(take: int, dtype: torch.dtype = torch.float32) -> None:
        with TensorFile(tmp_path / "b", [PLAN[2]]) as file:
            for _ in file.tensors():
                file.append(torch.zeros(take, dtype=dtype))

    with pytest.raises(CheckpointError, match="'wide' lacks 4 of 20 bytes"):
        write(4)
    with pytest.raises(CheckpointError, match="'wide' gets 24 bytes, 20 are left"):
        write(6)
    with pytest.raises(CheckpointError, match="'wide' is planned as F32, not torch.bfloat16"):
        write(5, torch.bfloat16)
    with pytest.raises(CheckpointError, match="that were not written"):
        with TensorFile(tmp_path / "b", PLAN):
            pass
