"""Sources: slices equal the whole, FP8 equals its BF16 twin to the bit, whatever does not fit is refused by name before data is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rorqual.checkpoint import hf
from rorqual.checkpoint.logical import logical_tensors
from rorqual.checkpoint.names import SCALE
from rorqual.checkpoint.source import FolderSource, ModelSource
from rorqual.errors import CheckpointError
from rorqual.kernels import fp8
from tests.checkpoint import members
from tests.checkpoint.folders import build
from tests.tiny import t0


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return members.write(tmp_path_factory.mktemp("fp8") / "v3", "v3_671b")


@pytest.mark.parametrize("scales", ["f32", "bf16", "e8m0"])
@pytest.mark.parametrize("name", ["v3_1", "kimi_k2"])
def test_fp8_loads_to_the_values_of_its_bf16_twin(tmp_path: Path, name: str, scales: str) -> None:
    """Dequantised once, rounded to BF16, held in FP32: equal to the twin bit by bit, so equal logits (F09)."""
    model, report = hf.load(members.write(tmp_path / "a", name, scales=scales))
    twin, _ = hf.load(members.write(tmp_path / "b", name, weights="bf16", scales=scales))
    for (key, value), other in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    assert not report.skipped and not report.missing and report.config.quantization_config is None
    assert sum(one.endswith(SCALE) for one in report.loaded) > 50


def test_rows_are_slices_and_codes_are_what_the_file_holds(coded: Path) -> None:
    stored = {}
    for file in coded.glob("*.safetensors"):
        stored |= safetensors.torch.load_file(file)
    with FolderSource(coded) as source:
        for name in ("model.embed_tokens.weight", "model.layers.3.mlp.experts.5.down_proj.weight", "model.norm.weight"):
            whole = source.rows(name, 0, source.shape(name)[0]).clone()
            parts = [source.rows(name, begin, begin + 1).clone() for begin in range(source.shape(name)[0])]
            assert torch.equal(torch.cat(parts), whole) and whole.dtype == torch.bfloat16
        name = "model.layers.3.mlp.experts.5.down_proj.weight"
        assert torch.equal(source.codes(name, 3, 9), stored[name].view(torch.uint8)[3:9])
        assert torch.equal(source.scales(name), stored[name + SCALE]) and source.dtype(name) == "F8_E4M3"
        assert torch.equal(source.rows(name, 0, 136), fp8.dequantize(stored[name], stored[name + SCALE], (128, 128)))
        with pytest.raises(CheckpointError, match="has no FP8 codes"):
            source.codes("model.norm.weight", 0, 1)
        with pytest.raises(CheckpointError, match="has no FP8 scales"):
            source.scales("model.norm.weight")


@pytest.mark.parametrize(("layers", "dense", "mtp"), [((0, 5), 3, 1), ((0, 4), 3, 0), ((3, 5), 0, 1), ((2, 4), 1, 0), ((4, 5), 0, 1)])
def test_a_range_of_layers_is_a_smaller_model(coded: Path, layers: tuple[int, int], dense: int, mtp: int) -> None:
    whole, _ = hf.load(coded)
    part, report = hf.load(coded, layers=layers)
    assert (part.config.num_hidden_layers, part.config.first_k_dense_replace) == (layers[1] - layers[0], dense)
    assert part.config.num_nextn_predict_layers == mtp
    mine, theirs = logical_tensors(part), logical_tensors(whole)
    for name, value in mine.items():
        number = name.split(".")[2] if name.startswith("model.layers.") else None
        other = name if number is None else name.replace(f"layers.{number}.", f"layers.{int(number) + layers[0]}.", 1)
        assert torch.equal(value, theirs[other]), name
    assert set(report.loaded).isdisjoint(report.skipped)
    assert hf.load(coded, mtp=False)[0].config.num_nextn_predict_layers == 0


@pytest.mark.parametrize("layers", [(0, 6), (-1, 2), (2, 2), (3, 1)])
def test_layers_outside_the_trunk_are_refused(coded: Path, layers: tuple[int, int]) -> None:
    with pytest.raises(CheckpointError, match=r"must be a range inside 0:5"):
        FolderSource(coded, layers=layers)


def test_fp8_without_its_field_is_read_if_the_scales_fit(tmp_path: Path) -> None:
    folder = members.write(tmp_path / "v3", "v3_671b")
    raw = json.loads((folder / "config.json").read_text())
    del raw["quantization_config"]
    (folder / "config.json").write_text(json.dumps(raw))
    with FolderSource(folder) as source:
        assert source.config.quantization_config is not None and "no quantization_config" in source.notices[0]


def _change(folder: Path, change) -> None:  # type: ignore[no-untyped-def]
    """Rewrites every shard with one function over all tensors of it; the index follows."""
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())["weight_map"] if index.exists() else None
    for file in sorted(folder.glob("*.safetensors")):
        tensors = safetensors.torch.load_file(file)
        change(tensors)
        safetensors.torch.save_file(tensors, file)
        if table is not None:
            table = {name: where for name, where in table.items() if where != file.name} | dict.fromkeys(tensors, file.name)
    if table is not None:
        index.write_text(json.dumps({"weight_map": table}))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("originals")
    return {name: members.write(root / name, name) for name in ("v3_671b", "kimi_k2", "v2_lite_16b", "moonlight_16b")}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["v3_671b", "kimi_k2", "v2_lite_16b"]))
def test_any_one_tensor_wrong_is_refused_with_its_name(
    tmp_path_factory: pytest.TempPathFactory, originals: dict[str, Path], data: st.DataObject, name: str
) -> None:
    """Renamed, removed, reshaped or of another dtype: a weight, a scale, a bias, a norm alike."""
    folder = tmp_path_factory.mktemp("one") / name
    shutil.copytree(originals[name], folder)
    every = {}
    for file in sorted(folder.glob("*.safetensors")):
        every |= safetensors.torch.load_file(file)
    repeated = ("embed_tokens.weight", "shared_head.head.weight")
    chosen = data.draw(st.sampled_from([key for key in every if not (key.startswith("model.layers.") and key.endswith(repeated))]))
    fault = data.draw(st.sampled_from(["renamed", "removed", "reshaped", "dtype"]))

    def change(tensors: dict[str, torch.Tensor]) -> None:
        if chosen not in tensors:
            return
        value = tensors.pop(chosen)
        if fault == "renamed":
            tensors[chosen.replace("weight", "wait").replace("bias", "bios")] = value
        elif fault == "reshaped":
            tensors[chosen] = value.view(torch.uint8).reshape(-1)[: value[:-1].numel() * value.element_size()].view(value.dtype).reshape(-1, *value.shape[1:])  # fmt: skip
        elif fault == "dtype":
            tensors[chosen] = torch.zeros(value.shape, dtype=torch.int32)

    _change(folder, change)
    with pytest.raises(CheckpointError) as caught:
        FolderSource(folder)
    stem = chosen.removesuffix(SCALE)
    assert chosen in str(caught.value) or stem in str(caught.value)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), name=st.sampled_from(["v3_671b", "moonlight_16b"]))
def test_a_truncated_file_is_refused_with_its_name(
    tmp_path_factory: pytest.TempPathFactory, originals: dict[str, Path], share: float, name: str
) -> None:
    folder = tmp_path_factory.mktemp("cut") / name
    shutil.copytree(originals[name], folder)
    file = sorted(folder.glob("*.safetensors"))[-1]
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=file.name):
        FolderSource(folder)


def test_wrong_scales_are_refused(tmp_path: Path) -> None:
    name = "model.layers.3.self_attn.kv_a_proj_with_mqa.weight"
    for number, (value, words) in enumerate(
        [
            (torch.ones(1, 2), r"has shape \[1, 2\]; blocks of 128 x 128 make it \[2, 2\]"),
            (torch.ones(2, 2).half(), "scales must be one of"),
        ]
    ):
        folder = members.write(tmp_path / str(number), "v3_671b")
        _change(folder, lambda tensors, value=value: name in tensors and tensors.update({name + SCALE: value}))
        with pytest.raises(CheckpointError, match=words):
            FolderSource(folder)
    folder = members.write(tmp_path / "gate", "v3_671b")
    gate = "model.layers.3.mlp.gate.weight"
    _change(folder, lambda tensors: gate in tensors and tensors.update({gate: tensors[gate].to(torch.float8_e4m3fn)}))
    with pytest.raises(CheckpointError, match="the layout keeps it in BF16"):
        FolderSource(folder)
    folder = members.write(tmp_path / "stray", "v3_671b", weights="bf16")
    _change(folder, lambda tensors: name in tensors and tensors.update({name + SCALE: torch.ones(2, 2)}))
    with pytest.raises(CheckpointError, match="scales without an FP8 weight"):
        FolderSource(folder)


def test_ragged_blocks_have_the_published_values() -> None:
    """Field case F08: [130, 200] ones with scales [[1, 2], [3, 4]]."""
    codes = torch.ones(130, 200).to(torch.float8_e4m3fn)
    values = fp8.dequantize(codes, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), (128, 128), dtype=torch.float32)
    assert [values[i, j].item() for i, j in ((127, 127), (127, 128), (128, 127), (129, 199))] == [1, 2, 3, 4]
    assert values.sum().item() == 36_160


def test_tensors_in_memory_are_a_source_too() -> None:
    model = build(t0())
    source = ModelSource(model.config, logical_tensors(model))
    for name in source.names():
        assert torch.equal(source.rows(name, 0, source.shape(name)[0]), logical_tensors(model)[name]) and source.dtype(name) == "F32"
    with pytest.raises(CheckpointError, match="is missing"):
        ModelSource(model.config, {})
