"""Every member's folder in FP8: read as its plain twin, kept in FP8, copied, dequantised and quantised again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rorqual.checkpoint import hf
from rorqual.checkpoint.card import read_licence
from rorqual.checkpoint.convert import convert
from rorqual.checkpoint.source import FolderSource
from tests.checkpoint import members
from tests.checkpoint.folders import table
from tests.checkpoint.test_hf_members import logits, same_bits, same_values

KINDS = [(name, "f32") for name in members.NAMES] + [("v3_671b", "bf16"), ("v3_1", "e8m0"), ("moonlight_16b", "e8m0")]


@pytest.mark.parametrize(("name", "scales"), KINDS)
def test_fp8_folders_compute_what_their_plain_twins_compute(tmp_path: Path, name: str, scales: str) -> None:
    folder = members.write(tmp_path / "fp8", name, weights="fp8", scales=scales)
    twin = members.write(tmp_path / "bf16", name, weights="bf16", scales=scales)
    plain = table(twin)
    want = logits(hf.load(twin)[0])
    model, report = hf.load(folder)
    assert same_values(model, plain) and torch.equal(logits(model), want)
    assert set(report.loaded) == set(table(folder)) and (report.skipped, report.missing, report.notices) == ([], [], [])


@pytest.mark.parametrize(("name", "scales"), KINDS)
def test_weights_kept_in_fp8_compute_the_same(tmp_path: Path, name: str, scales: str) -> None:
    folder = members.write(tmp_path / "fp8", name, weights="fp8", scales=scales)
    model, _ = hf.load(members.write(tmp_path / "bf16", name, weights="bf16", scales=scales))
    kept, report = hf.load(folder, weights="fp8")
    assert torch.equal(logits(kept), logits(model))
    assert set(report.loaded) == set(table(folder)) and report.notices == []
    sizes = [sum(value.nbytes for value in one.state_dict().values()) for one in (kept, model)]
    assert sizes[0] < 0.4 * sizes[1]


@pytest.mark.parametrize(("name", "scales"), KINDS)
def test_fp8_folders_are_copied_and_dequantised_to_the_bit(tmp_path: Path, name: str, scales: str) -> None:
    folder = members.write(tmp_path / "fp8", name, weights="fp8", scales=scales)
    released, plain = table(folder), table(members.write(tmp_path / "bf16", name, weights="bf16", scales=scales))
    raw = json.loads((folder / "config.json").read_text())
    with FolderSource(folder) as source:
        licences = read_licence(folder).files
        copy = convert(source, folder, tmp_path / "copy", copied=licences)
        bf16 = convert(source, folder, tmp_path / "plain", to="bf16", shard_size=1_000_000, copied=licences)
    assert same_bits(table(copy), released) and same_bits(table(bf16), plain)
    written = json.loads((copy / "config.json").read_text()), json.loads((bf16 / "config.json").read_text())
    assert written[0]["quantization_config"] == raw["quantization_config"] and "quantization_config" not in written[1]
    for out, config in zip((copy, bf16), written, strict=True):
        assert all(config.get(key, ...) == value for key, value in raw.items() if key not in ("auto_map", "quantization_config"))
        assert "auto_map" not in config and not list(out.glob("*.py"))
        assert {path.name for path in out.glob("LICENSE*")} == {path.name for path in folder.glob("LICENSE*")}
        assert (out / "generation_config.json").read_bytes() == (folder / "generation_config.json").read_bytes()
    assert torch.equal(logits(hf.load(bf16)[0]), logits(hf.load(copy)[0]))


@pytest.mark.parametrize("name", members.NAMES)
def test_plain_folders_are_quantised_within_half_a_step(tmp_path: Path, name: str) -> None:
    folder = members.write(tmp_path / "bf16", name, weights="bf16")
    with FolderSource(folder) as source:
        quantised = convert(source, folder, tmp_path / "fp8", to="fp8")
    before, after = table(folder), table(quantised)
    raw = json.loads((quantised / "config.json").read_text())
    assert raw["quantization_config"]["weight_block_size"] == [128, 128]
    weights = [n for n in after if f"{n}_scale_inv" in after]
    assert {n for n in before if "_proj" in n and "eh_proj" not in n} == set(weights)
    assert all(torch.equal(after[n], before[n]) for n in before if n not in weights)
    for n in weights:
        scale = (
            after[f"{n}_scale_inv"]
            .float()
            .repeat_interleave(128, 0)[: before[n].shape[0]]
            .repeat_interleave(128, 1)[:, : before[n].shape[1]]
        )
        value, want = after[n].float() * scale, before[n].float()
        step = (
            torch.maximum(2.0 ** torch.floor(torch.log2((want / scale).abs().clamp(min=2.0**-6))) * 2.0**-3, torch.tensor(2.0**-9)) * scale
        )
        assert ((value - want).abs() <= 0.5001 * step).all()
    model, report = hf.load(quantised)
    assert report.notices == [] and logits(model).isfinite().all()
