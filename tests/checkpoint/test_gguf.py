"""GGUF files: read back tensor for tensor, every field that decides the model, llama.cpp's own greedy tokens where it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rorqual.checkpoint import gguf as exporting
from rorqual.checkpoint import hf
from rorqual.checkpoint.source import FolderSource, ModelSource
from rorqual.cli import export
from rorqual.errors import CheckpointError
from rorqual.inference import handover
from tests.checkpoint import members
from tests.checkpoint.folders import build
from tests.tiny import t0

gguf = pytest.importorskip("gguf", reason="GGUF export needs the extra `gguf`")


def expected(source: FolderSource) -> dict[str, torch.Tensor]:
    """What the file must hold, from the source by llama.cpp's names."""
    config = source.config

    def whole(name: str) -> torch.Tensor:
        return source.rows(name, 0, source.shape(name)[0]).float().clone()

    found = {
        "token_embd.weight": whole("model.embed_tokens.weight"),
        "output_norm.weight": whole("model.norm.weight"),
        "output.weight": whole("lm_head.weight"),
    }
    layer = config.num_hidden_layers - 1
    old, new = f"model.layers.{layer}.", f"blk.{layer}."
    kv = whole(f"{old}self_attn.kv_b_proj.weight").view(config.num_attention_heads, -1, config.kv_lora_rank)
    found[f"{new}attn_k_b.weight"] = kv[:, : config.qk_nope_head_dim].transpose(1, 2)
    found[f"{new}attn_v_b.weight"] = kv[:, config.qk_nope_head_dim :]
    found[f"{new}attn_output.weight"] = whole(f"{old}self_attn.o_proj.weight")
    found[f"{new}ffn_gate_inp.weight"] = whole(f"{old}mlp.gate.weight")
    found[f"{new}ffn_down_exps.weight"] = torch.stack(
        [whole(f"{old}mlp.experts.{e}.down_proj.weight") for e in range(config.n_routed_experts)]
    )
    found[f"{new}ffn_up_shexp.weight"] = whole(f"{old}mlp.shared_experts.up_proj.weight")
    found["blk.0.ffn_gate.weight"] = whole("model.layers.0.mlp.gate_proj.weight")
    return found


@pytest.mark.parametrize("outtype", exporting.OUTTYPES)
@pytest.mark.parametrize("name", ["v3_671b", "v2_lite_16b", "moonlight_16b"])
def test_tensors_read_back(tmp_path: Path, name: str, outtype: str) -> None:
    folder = members.write(tmp_path / name, name, **({"hidden_size": 160} if outtype == "q8_0" else {}))
    with FolderSource(folder) as source:
        out = exporting.write(source, folder, tmp_path / "model.gguf", outtype=outtype)
        back, want = exporting.tensors_of(out), expected(source)
    assert not any(key.startswith(f"blk.{source.config.num_hidden_layers}.") for key in back)
    for key, value in want.items():
        assert back[key].shape == value.shape, key
        if outtype == "f32":
            assert torch.equal(back[key], value), key
        elif outtype == "f16":
            torch.testing.assert_close(back[key], value, atol=1e-4, rtol=1e-3)
        else:
            step = value.abs().max() / 127
            assert (back[key] - value).abs().max() <= 0.51 * step + 1e-3 * value.abs().max(), key
    assert torch.equal(back["output_norm.weight"], want["output_norm.weight"])
    assert torch.equal(
        back[f"blk.{source.config.num_hidden_layers - 1}.ffn_gate_inp.weight"],
        want[f"blk.{source.config.num_hidden_layers - 1}.ffn_gate_inp.weight"],
    )


def _fields(path: Path) -> dict[str, object]:
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


def test_fields_of_v3(tmp_path: Path) -> None:
    folder = members.write(tmp_path / "v3", "v3_671b")
    with FolderSource(folder) as source:
        fields = _fields(exporting.write(source, folder, tmp_path / "m.gguf", outtype="f32"))
        config = source.config
    want = {
        "general.architecture": "deepseek2", "deepseek2.block_count": config.num_hidden_layers, "deepseek2.leading_dense_block_count": 3,
        "deepseek2.attention.head_count_kv": 1, "deepseek2.attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim,
        "deepseek2.attention.key_length_mla": config.qk_head_dim, "deepseek2.attention.value_length_mla": config.v_head_dim,
        "deepseek2.attention.q_lora_rank": 48, "deepseek2.expert_gating_func": 2, "deepseek2.expert_weights_norm": True,
        "deepseek2.expert_group_count": 8, "deepseek2.expert_group_used_count": 4, "deepseek2.rope.scaling.type": "yarn",
        "deepseek2.rope.scaling.original_context_length": 64, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "deepseek-v3",
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1,
    }  # fmt: skip
    assert {key: fields.get(key) for key in want} == want
    assert fields["deepseek2.rope.scaling.yarn_log_multiplier"] == pytest.approx(0.1) and fields["deepseek2.expert_weights_scale"] == 2.5
    assert len(fields["tokenizer.ggml.tokens"]) == config.vocab_size == len(fields["tokenizer.ggml.token_type"])


def test_fields_of_the_others(tmp_path: Path) -> None:
    for name, pre, gating in (("v2_lite_16b", "deepseek-llm", 1), ("kimi_k2", "kimi-k2", 2)):
        folder = members.write(tmp_path / name, name)
        with FolderSource(folder) as source:
            fields = _fields(exporting.write(source, folder, tmp_path / f"{name}.gguf", outtype="f16"))
        assert (fields["tokenizer.ggml.pre"], fields["deepseek2.expert_gating_func"]) == (pre, gating)
        assert ("deepseek2.attention.q_lora_rank" in fields) == (name == "kimi_k2") and "deepseek2.expert_group_count" not in fields


def test_refusals_leave_nothing_behind(tmp_path: Path) -> None:
    model = build(t0())
    source = ModelSource(model.config, dict(hf.logical_tensors(model)) if hasattr(hf, "logical_tensors") else _named(model))
    with pytest.raises(CheckpointError, match="must be one of f32, f16, q8_0"):
        exporting.write(source, None, tmp_path / "m.gguf", outtype="q4_k")
    with pytest.raises(CheckpointError, match="moe_layer_freq"):
        exporting._check(t0(moe_layer_freq=2))
    with pytest.raises(CheckpointError, match="26 and 27 layers"):
        exporting._check(t0(num_hidden_layers=27))

    def stop(done: int, total: int, name: str) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exporting.write(source, None, tmp_path / "m.gguf", progress=stop)
    assert list(tmp_path.iterdir()) == []


def _named(model):  # type: ignore[no-untyped-def]
    from rorqual.checkpoint.logical import logical_tensors

    return logical_tensors(model)


def test_the_verb_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = members.write(tmp_path / "lite", "v2_lite_16b")
    assert export.main([str(folder), str(tmp_path / "lite.gguf"), "--to", "gguf:f32"]) == 0
    assert "GGUF f32" in capsys.readouterr().out and (tmp_path / "lite.gguf").stat().st_size > 100_000
    for arguments, words in (([str(tmp_path / "lite.gguf")], "exists; choose"), ([str(tmp_path / "d")], "is a folder")):
        (tmp_path / "d").mkdir(exist_ok=True)
        with pytest.raises(CheckpointError, match=words):
            export.main([str(folder), *arguments, "--to", "gguf"])


@pytest.mark.peer
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["v3_671b", "v2_lite_16b", "moonlight_16b", "kimi_k2"])
def test_llama_cpp_gives_the_same_greedy_tokens(tmp_path: Path, name: str) -> None:
    if handover.package_folder() is None:
        pytest.skip(f"node-llama-cpp is not installed; name its folder in {handover.NODE_FOLDER}")
    depth: dict = (
        {"num_hidden_layers": 27} if name in ("v2_lite_16b", "moonlight_16b") else {}
    )  # how llama.cpp knows that there is no q_a_proj
    if name == "kimi_k2":  # llama.cpp's binding keeps to beta_fast 32 whatever the file says, and K2 has 1
        depth = {"rope_scaling": {**members.config_json(name)["rope_scaling"], "beta_fast": 32.0}}
    folder = members.write(tmp_path / name, name, **depth)
    with FolderSource(folder) as source:
        out = exporting.write(source, folder, tmp_path / "m.gguf", outtype="f32")
        assert "the same" in handover.check("llamacpp", out, source, folder)


def test_a_tokenizer_that_llama_cpp_cannot_name_is_refused():
    with pytest.raises(CheckpointError, match="is none of deepseek-v3, deepseek-llm"):
        exporting._pre([r"\w+"], {("a",): "deepseek-v3"})
    assert exporting._pre(["a"], {("a",): "deepseek-v3"}) == "deepseek-v3"
