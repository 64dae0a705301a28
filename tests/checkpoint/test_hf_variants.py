"""Other layouts of the same weights, biases, MTP modules: what loads, and as what (field cases F05, F07, F17)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from rorqual.checkpoint import hf
from rorqual.checkpoint.logical import logical_tensors
from rorqual.checkpoint.names import copies, expected
from rorqual.errors import CheckpointError
from rorqual.model.router import route
from rorqual.model.transformer import CausalLM
from tests.checkpoint.folders import EMBEDDING, HEAD, IDS, build, logits, rewrite, same, table
from tests.tiny import t0


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return build(t0())


@pytest.fixture
def folder(model: CausalLM, tmp_path: Path) -> Path:
    return hf.export(model, None, tmp_path / "hf")


# ---------------------------------------------------------------------- F05


def spread(folder: Path, metadata: dict[str, Any]) -> None:
    tensors = table(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    weight_map = {name: f"model-0000{1 + number % 3}-of-00003.safetensors" for number, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        safetensors.torch.save_file({name: tensors[name].clone() for name in tensors if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({**metadata, "weight_map": weight_map}))


@pytest.mark.parametrize(
    "metadata", [None, {}, {"metadata": {}}, {"metadata": {"total_size": 5}}], ids=["single file", "no metadata", "empty", "wrong size"]
)
def test_legal_layouts_of_the_same_weights(model: CausalLM, folder: Path, metadata: dict[str, Any] | None) -> None:
    if metadata is not None:
        spread(folder, metadata)
    back, report = hf.load(folder)
    assert same(model, back) and torch.equal(logits(back), logits(model))
    assert len(report.notices) == (metadata == {"metadata": {"total_size": 5}})


@pytest.mark.parametrize("kind", ["no head", "same head", "another head"])
def test_tied_heads_are_one_storage(tmp_path: Path, kind: str) -> None:
    model = build(t0(tie_word_embeddings=True))
    out = hf.export(model, None, tmp_path / "hf")
    assert HEAD not in table(out)
    if kind != "no head":
        rewrite(out, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING] + (kind == "another head")}))
    back, report = hf.load(out)
    assert same(model, back) and back.head_weight.data_ptr() == back.model.embed_tokens.weight.data_ptr()
    hidden = back(IDS).hidden
    assert torch.equal(back.logits(hidden), hidden @ back.model.embed_tokens.weight.T)
    differs = f"{HEAD} differs from {EMBEDDING}, which is used in its place: this model shares the two"
    assert report.notices == ([differs] if kind == "another head" else [])
    back.logits(hidden).square().mean().backward()
    with torch.no_grad():
        for parameter in back.parameters():
            parameter -= 0.1 * (parameter.grad if parameter.grad is not None else 0)
    assert back.head_weight.data_ptr() == back.model.embed_tokens.weight.data_ptr()
    again, _ = hf.load(hf.export(back, None, tmp_path / "again"))
    assert same(back, again) and again.head_weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()


def test_an_untied_head_that_is_missing_is_an_error(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop(HEAD))
    with pytest.raises(CheckpointError, match="a head is never made up"):
        hf.load(folder)


# ---------------------------------------------------------------------- F07


@pytest.mark.parametrize("bias", [[34.50, 34.54, 34.58, 34.62], [2.020, 2.021, 2.022, 2.023]])
def test_close_biases_choose_the_same_experts_after_every_step(tmp_path: Path, bias: list[float]) -> None:
    config = t0(n_routed_experts=4, n_group=1, topk_group=1)
    model = build(config)
    for _, buffer in model.router_biases():
        buffer.copy_(torch.tensor(bias))
    cast = build(config)
    cast.load_state_dict(model.state_dict())
    cast.to(torch.bfloat16)
    through_bf16, _ = hf.load(hf.export(cast, None, tmp_path / "b", dtype="bf16"), dtype=torch.bfloat16)
    for one in (model, cast, through_bf16, hf.load(hf.export(model, None, tmp_path / "a"))[0]):
        for _, buffer in one.router_biases():
            assert buffer.dtype == torch.float32 and torch.equal(buffer, torch.tensor(bias))
            assert route(torch.zeros(1, 4), buffer, config).indices.tolist() == [[3, 2]]


def test_a_bias_stored_in_bf16_is_raised_with_a_notice(folder: Path) -> None:
    names = [f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (1, 2, 3)]
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name].bfloat16() for name in names}))
    back, report = hf.load(folder)
    assert report.notices == ["router bias is stored as BF16 in 3 layer(s), raised to FP32: what rounding took from it is lost"]
    assert all(buffer.dtype == torch.float32 for _, buffer in back.router_biases())
    rewrite(folder, lambda tensors: tensors.pop(names[1]))
    with pytest.raises(CheckpointError, match=f"lacks '{names[1]}'; topk_method 'noaux_tc' needs the router's bias"):
        hf.load(folder)


# ---------------------------------------------------------------------- F17


def mtp_names() -> set[str]:
    shapes = dict(expected(t0()))
    return {name for name in [*shapes, *copies(t0())] if name.startswith("model.layers.3.")}


def test_promised_mtp_that_is_absent(model: CausalLM, folder: Path) -> None:
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in mtp_names()])
    back, report = hf.load(folder)
    assert report.config == back.config == t0(num_nextn_predict_layers=0) and torch.equal(logits(back), logits(model))
    assert (report.missing, report.skipped) == (
        ["model.layers.3.*"],
        [],
    ) and "MTP prediction beyond that is not available" in report.notices[0]


def test_mtp_that_the_configuration_does_not_want(model: CausalLM, folder: Path) -> None:
    rewrite(folder, config={"num_nextn_predict_layers": 0})
    back, report = hf.load(folder)
    assert set(report.skipped) == mtp_names() and report.missing == [] and set(report.loaded) == set(table(folder)) - mtp_names()
    assert torch.equal(logits(back), logits(model))


def test_cut_layers_leave_the_mtp_module_in_its_place(model: CausalLM, folder: Path) -> None:
    rewrite(folder, config={"num_hidden_layers": 2})
    back, report = hf.load(folder)
    assert set(report.skipped) == {name for name in table(folder) if name.startswith("model.layers.2.")} and report.missing == []
    a, b = logical_tensors(model), logical_tensors(back)
    assert torch.equal(b["model.layers.2.eh_proj.weight"], a["model.layers.3.eh_proj.weight"])
    assert torch.equal(b["model.layers.2.mlp.experts.5.up_proj.weight"], a["model.layers.3.mlp.experts.5.up_proj.weight"])


@pytest.mark.parametrize("layers", [3, 12])
def test_names_without_the_prefix(tmp_path: Path, layers: int) -> None:
    model = build(t0(num_hidden_layers=layers))
    out = hf.export(model, None, tmp_path / "hf")
    bare = {name.removeprefix("model."): value for name, value in table(out).items()}
    safetensors.torch.save_file(bare, out / "model.safetensors")
    back, report = hf.load(out)
    assert same(model, back) and set(report.loaded) == set(bare) and (report.skipped, report.missing, report.notices) == ([], [], [])


def test_mtp_copies_that_are_absent_or_different(model: CausalLM, folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("model.layers.3.shared_head.head.weight"))
    rewrite(folder, lambda tensors: tensors["model.layers.3.embed_tokens.weight"].add_(1))
    back, report = hf.load(folder)
    assert same(model, back) and report.notices == [
        f"model.layers.3.embed_tokens.weight differs from {EMBEDDING}, which is used in its place: this model shares the two"
    ]
