"""Official folders: legal variants load to the same bits, anything else is refused by name (field cases F01, F02, F04, F06)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rorqual.checkpoint import hf
from rorqual.checkpoint.logical import logical_tensors
from rorqual.checkpoint.names import copies, expected
from rorqual.errors import CheckpointError, ConfigError
from rorqual.model.transformer import CausalLM
from tests.checkpoint.folders import EMBEDDING, HEAD, build, logits, rewrite, same, table
from tests.tiny import t0


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return build(t0())


@pytest.fixture
def folder(model: CausalLM, tmp_path: Path) -> Path:
    return hf.export(model, None, tmp_path / "hf")


# ---------------------------------------------------------------------- both ways, to the bit

F04 = [
    {}, {"q_lora_rank": None}, {"num_nextn_predict_layers": 0}, {"num_nextn_predict_layers": 2}, {"n_shared_experts": 2}, {"n_shared_experts": 0},
    {"first_k_dense_replace": 0, "moe_layer_freq": 2}, {"first_k_dense_replace": 3}, {"n_routed_experts": 0}, {"tie_word_embeddings": True},
    {"v_head_dim": 20, "num_attention_heads": 3, "kv_lora_rank": 24, "vocab_size": 259}, {"rope_scaling": None},
    {"topk_method": "group_limited_greedy", "scoring_func": "softmax", "model_type": "deepseek_v2", "norm_topk_prob": False},
]  # fmt: skip


@pytest.mark.parametrize("changes", F04, ids=str)
@pytest.mark.parametrize("shard_size", [5_000_000_000, 100_000])
def test_export_and_load_give_the_same_bits(tmp_path: Path, changes: dict[str, Any], shard_size: int) -> None:
    config = t0(**changes)
    model = build(config)
    out = hf.export(model, None, tmp_path / "hf", shard_size=shard_size)
    files = sorted(path.name for path in out.glob("*.safetensors"))
    if shard_size > 10**6:
        assert files == ["model.safetensors"]
    else:
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert files == sorted(set(index["weight_map"].values())) and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
        assert index["metadata"] == {"total_size": sum(value.nbytes for value in table(out).values())}
    shapes = dict(expected(config))
    assert {name: tuple(value.shape) for name, value in table(out).items()} == shapes | {c: shapes[o] for c, o in copies(config).items()}
    back, report = hf.load(out)
    assert report.config == config and same(model, back)
    assert set(report.loaded) == set(table(out)) and (report.skipped, report.missing, report.notices) == ([], [], [])
    again = hf.export(back, None, tmp_path / "again", shard_size=shard_size)
    assert all((again / path.name).read_bytes() == path.read_bytes() for path in out.iterdir())


def test_bf16_folders_keep_their_bits_and_the_bias_its_precision(model: CausalLM, tmp_path: Path) -> None:
    out = hf.export(model, None, tmp_path / "a", dtype="bf16")
    dtypes = {name: value.dtype for name, value in table(out).items()}
    assert {name for name, dtype in dtypes.items() if dtype != torch.bfloat16} == {
        name for name in dtypes if name.endswith("e_score_correction_bias")
    }
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    for dtype in (torch.float32, torch.bfloat16):
        back, report = hf.load(out, dtype=dtype)
        assert report.notices == [] and back.lm_head.weight.dtype == dtype and back.model.layers[1].mlp.gate.weight.dtype == torch.float32
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(model.router_biases(), back.router_biases(), strict=True))
        again = hf.export(back, None, tmp_path / f"b{dtype}", dtype="bf16")
        assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert torch.get_default_dtype() == torch.float32


def test_mtp_modules_carry_copies_and_headers_carry_metadata(model: CausalLM, tmp_path: Path) -> None:
    out = hf.export(model, None, tmp_path / "hf", metadata={"run": "x"}, shard_size=10**5)
    tensors = table(out)
    assert torch.equal(tensors["model.layers.3.embed_tokens.weight"], tensors[EMBEDDING])
    assert torch.equal(tensors["model.layers.3.shared_head.head.weight"], tensors[HEAD])
    with safetensors.safe_open(next(out.glob("*.safetensors")), "pt") as file:
        assert file.metadata() == {"format": "pt", "run": "x"}
    assert json.loads((out / "model.safetensors.index.json").read_text())["metadata"]["run"] == "x"


def test_tokenizer_files_come_along_and_code_does_not(model: CausalLM, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "modeling_evil.py", "notes.txt"):
        (tokenizer / name).write_text(name)
    out = hf.export(model, tokenizer, tmp_path / "hf")
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        hf.export(model, tmp_path, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_an_existing_folder_is_refused_and_a_failed_export_leaves_nothing(
    model: CausalLM, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        hf.export(model, None, folder)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("rorqual.checkpoint.convert.TensorFile", full)
        with pytest.raises(CheckpointError, match="No space left on device"):
            hf.export(build(t0(), 1), None, folder, replace=True)
    assert (folder / "model.safetensors").read_bytes() == before and [path.name for path in folder.parent.iterdir()] == ["hf"]
    hf.export(build(t0(), 1), None, folder, replace=True)
    assert (folder / "model.safetensors").read_bytes() != before


def test_bad_requests_are_refused(model: CausalLM, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="dtype .'int4'. must be one of 'fp32', 'bf16', 'fp8'"):
        hf.export(model, None, tmp_path / "x", dtype="int4")
    with pytest.raises(CheckpointError, match="shard_size"):
        hf.export(model, None, tmp_path / "x", shard_size=0)
    tensors = logical_tensors(model)
    with pytest.raises(CheckpointError, match="'lm_head.weight' has shape"):
        hf.export_tensors(t0(), {**tensors, HEAD: torch.zeros(3, 3)}, None, tmp_path / "x")
    tensors.pop("model.norm.weight")
    with pytest.raises(CheckpointError, match="'model.norm.weight' is missing"):
        hf.export_tensors(t0(), tensors, None, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- F01


@pytest.mark.parametrize(("rank", "written"), [(None, None), (None, 0), (None, ...), (48, ...)])
def test_the_query_rank_follows_null_zero_or_the_tensors(tmp_path: Path, rank: int | None, written: object) -> None:
    model = build(t0(q_lora_rank=rank))
    out = hf.export(model, None, tmp_path / "hf")
    rewrite(out, config={"q_lora_rank": written})
    back, report = hf.load(out)
    assert report.config.q_lora_rank == rank and same(model, back)
    attention = sum(value.numel() for name, value in back.named_parameters() if name.startswith("model.layers.0.self_attn"))
    assert attention == (16_928 if rank is None else 18_512)
    assert json.loads((hf.export(back, None, tmp_path / "again") / "config.json").read_text())["q_lora_rank"] == rank


# ---------------------------------------------------------------------- F02, end to end


def test_spellings_of_rope_scaling_give_the_same_logits(folder: Path) -> None:
    yarn = {"factor": 4, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1, "mscale": 1, "mscale_all_dim": 1}
    want = logits(hf.load(folder)[0])
    for change in (
        {"rope_scaling": {"type": "yarn", **yarn}},
        {"rope_scaling": {"rope_type": "yarn", **{key: float(value) for key, value in yarn.items()}}},
        {"rope_scaling": {"type": "yarn", "rope_type": "yarn", **yarn}},
        {"rope_scaling": ..., "rope_theta": ..., "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, **yarn}},
    ):
        rewrite(folder, config=change)
        assert torch.equal(logits(hf.load(folder)[0]), want)
    rewrite(folder, config={"rope_parameters": ..., "rope_scaling": None, "rope_theta": 10000.0})
    assert not torch.equal(logits(hf.load(folder)[0]), want)


# ---------------------------------------------------------------------- F06


def test_a_folder_with_pickles_and_code_runs_nothing(folder: Path) -> None:
    marker = folder.parent / "ran"
    (folder / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w').close()")
    (folder / "optimizer.pt").write_bytes(f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode())
    rewrite(folder, config={"auto_map": {"AutoConfig": "modeling_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}})
    hf.load(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights can run code and are never opened"):
        hf.load(folder)
    assert not marker.exists()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_folder_cut_anywhere_is_refused_by_name(folder: Path, data: st.DataObject) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    try:
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            hf.load(folder)
    finally:
        (folder / "model.safetensors").write_bytes(whole)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(dict(expected(t0())))), st.sampled_from(["renamed", "removed", "reshaped", "another dtype"]))
def test_any_one_tensor_at_fault_is_named(folder: Path, name: str, fault: str) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        value = tensors.pop(name)
        if fault == "renamed":
            tensors["x" + name] = value
        elif fault == "reshaped":
            tensors[name] = value.unsqueeze(-1)
        elif fault == "another dtype":
            tensors[name] = value.to(torch.float8_e4m3fn)

    whole = (folder / "model.safetensors").read_bytes()
    rewrite(folder, change)
    try:
        with pytest.raises(CheckpointError) as caught:
            hf.load(folder)
        assert repr(name) in str(caught.value)
    finally:
        (folder / "model.safetensors").write_bytes(whole)


def test_a_stale_quantisation_field_is_a_notice_and_unknown_dtypes_are_refused(folder: Path) -> None:
    quantised = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    rewrite(folder, config={"quantization_config": quantised})
    back, report = hf.load(folder)
    assert report.config == back.config == t0() and "quantization_config" in report.notices[0]
    name = "model.layers.0.self_attn.o_proj.weight"
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e4m3fn)}))
    with pytest.raises(CheckpointError, match=r"o_proj.weight' is FP8 but '.*o_proj.weight_scale_inv' is missing"):
        hf.load(folder)
    rewrite(folder, lambda tensors: tensors.update({name: torch.zeros(64, 64, dtype=torch.int32)}))
    with pytest.raises(CheckpointError, match="has dtype I32; weights must be one of F32, BF16, F16"):
        hf.load(folder)


def test_a_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match="config.json does not exist"):
        hf.load(folder)


@pytest.mark.parametrize(
    "changes", [{"scoring_func": "softmax", "topk_method": "greedy"}, {"topk_method": "greedy"}, {"scoring_func": "softmax"}], ids=str
)
def test_a_router_that_no_other_reader_has_is_written_with_a_warning(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = build(t0(norm_topk_prob=True, **changes))
    with pytest.warns(UserWarning, match="others will compute other logits"):
        out = hf.export(model, None, tmp_path / "hf")
    assert same(hf.load(out)[0], model)
