"""Every value is looked at: NaN codes, infinities, NaN scales are found by tensor and counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from rorqual.checkpoint.verify import verify
from tests.checkpoint import members


@pytest.mark.parametrize("name", ["v3_671b", "v3_1", "moonlight_16b"])
def test_a_sound_folder(tmp_path: Path, name: str) -> None:
    folder = members.write(tmp_path / name, name, scales="e8m0" if name == "v3_1" else "f32")
    seen: list[tuple[int, int]] = []
    found = verify(folder, lambda done, total, what: seen.append((done, total)))
    size = sum(
        value.numel() * value.element_size()
        for file in folder.glob("*.safetensors")
        for value in safetensors.torch.load_file(file).values()
    )
    assert found.ok and found.num_bytes == size == seen[-1][0] == seen[-1][1] and found.seconds > 0


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("model.layers.3.mlp.experts.2.up_proj.weight", 77, torch.tensor(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn)),
        ("model.layers.3.mlp.experts.2.up_proj.weight", 0, torch.tensor(0xFF, dtype=torch.uint8).view(torch.float8_e4m3fn)),
        ("model.layers.0.self_attn.o_proj.weight_scale_inv", 1, torch.tensor(float("inf"))),
        ("model.norm.weight", 5, torch.tensor(float("-inf"), dtype=torch.bfloat16)),
        ("model.layers.4.mlp.gate.e_score_correction_bias", 3, torch.tensor(float("nan"))),
    ],
)
def test_one_value_that_is_no_number_is_found(tmp_path: Path, name: str, place: int, value: torch.Tensor) -> None:
    folder = members.write(tmp_path / "v3", "v3_671b")
    for file in folder.glob("*.safetensors"):
        table = safetensors.torch.load_file(file)
        if name in table:
            table[name].view(-1)[place] = value
            safetensors.torch.save_file(table, file)
    found = verify(folder)
    assert found.bad == {name: 1} and not found.ok


def test_the_largest_numbers_are_numbers(tmp_path: Path) -> None:
    folder = members.write(tmp_path / "v3", "v3_671b")
    for file in folder.glob("*.safetensors"):
        table = safetensors.torch.load_file(file)
        for name, value in table.items():
            if name.endswith("up_proj.weight"):
                value.view(torch.uint8).fill_(0x7E)  # 448
            elif name == "model.norm.weight":
                value.fill_(torch.finfo(torch.bfloat16).max)
        safetensors.torch.save_file(table, file)
    assert verify(folder).ok


def test_an_extra_tensor_of_another_dtype_is_read_and_no_fault(tmp_path: Path) -> None:
    folder = members.write(tmp_path / "v3", "v3_671b", shards=1)
    table = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file({**table, "model.extra": torch.arange(5)}, folder / "model.safetensors")
    found = verify(folder)
    assert found.ok and found.tensors == len(table) + 1
