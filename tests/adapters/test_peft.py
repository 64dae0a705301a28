"""PEFT's layout: read back as written, deltas by official name, refusals; and `peft` itself computes what we compute."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rorqual.adapters import lora, peft
from rorqual.adapters.config import LoraConfig
from rorqual.checkpoint import hf
from rorqual.errors import CheckpointError
from rorqual.model.transformer import CausalLM
from rorqual.tokenizer import bpe
from tests.adapters.test_lora import ALL, IDS, hidden, model, stir


def written(folder: Path, targets: tuple[str, ...] = ALL) -> CausalLM:
    config = LoraConfig(rank=3, alpha=4.5, targets=targets)
    one = stir(lora.apply(model(), config), size=0.2)
    peft.save(one, config, "the/base", folder)
    return one


@pytest.mark.parametrize("targets", [("attention",), ("ffn",), ("attention", "ffn"), ALL])
def test_what_is_written_is_read_back(tmp_path: Path, targets):
    one, other = written(tmp_path, targets), model()
    assert peft.load(other, tmp_path) == LoraConfig(rank=3, alpha=4.5, targets=targets)
    ours, theirs = lora.trainable(one), lora.trainable(other)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_files_are_pefts(tmp_path: Path):
    written(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == ("LORA", 3, 4.5, "the/base")
    assert "kv_a_proj_with_mqa" in config["target_modules"] and "q_proj" not in config["target_modules"]
    assert config["target_parameters"][-3:] == ["shared_experts.down_proj.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    shapes = {name: tuple(t.shape) for name, t in load_file(tmp_path / "adapter_model.safetensors").items()}
    assert shapes["base_model.model.model.layers.0.self_attn.q_a_proj.lora_A.weight"] == (3, 64)
    assert shapes["base_model.model.model.layers.1.mlp.experts.base_layer.lora_A.weight"] == (24, 64)
    assert shapes["base_model.model.model.layers.1.mlp.experts.lora_B.weight"] == (64, 24)


def test_the_delta_of_each_weight_by_its_official_name(tmp_path: Path):
    one = written(tmp_path)
    adapter = peft.Adapter.read(tmp_path)
    layer = one.get_submodule("model.layers.0.mlp.down_proj")
    torch.testing.assert_close(adapter.delta("model.layers.0.mlp.down_proj.weight", 10, 20), layer.delta()[10:20])
    stack = one.get_submodule("model.layers.2.mlp.experts.gate_up_proj").delta()
    torch.testing.assert_close(adapter.delta("model.layers.2.mlp.experts.5.gate_proj.weight", 0, 32), stack[5, :32])
    torch.testing.assert_close(adapter.delta("model.layers.2.mlp.experts.5.up_proj.weight", 8, 16), stack[5, 40:48])
    torch.testing.assert_close(
        adapter.delta("model.layers.2.mlp.experts.7.down_proj.weight", 0, 64),
        one.get_submodule("model.layers.2.mlp.experts.down_proj").delta()[7],
    )
    assert adapter.delta("model.layers.2.mlp.gate.weight", 0, 8) is None and adapter.delta("lm_head.weight", 0, 8) is None


def test_what_does_not_fit_is_refused(tmp_path: Path):
    written(tmp_path, ("attention",))
    with pytest.raises(CheckpointError, match="belongs to another model"):
        peft.load(model(q_lora_rank=None), tmp_path)
    named = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for change, told in (
        ({"use_dora": True}, "use_dora"), ({"peft_type": "IA3"}, "no LoRA"), ({"r": None}, "r \\(None\\)"), ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ):  # fmt: skip
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=told):
            peft.read_config(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({name: t for name, t in named.items() if "q_a_proj.lora_B" not in name}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="only one half"):
        peft.Adapter.read(tmp_path)
    save_file({**named, "base_model.model.lm_head.weight": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="is no LoRA weight"):
        peft.Adapter.read(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="cannot read"):
        peft.Adapter.read(tmp_path)


@pytest.mark.peer
@pytest.mark.parametrize("targets", [("attention", "ffn"), ALL])
def test_peft_computes_what_we_compute(tmp_path: Path, targets):
    """The adapter on transformers' own model; its MTP modules' parts are left aside by readers without them."""
    peer = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    (tmp_path / "adapter").mkdir()
    one = written(tmp_path / "adapter", targets)
    bpe.train(["one two three"], 280, tmp_path / "tokenizer")
    base = hf.export(model(), tmp_path / "tokenizer", tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        plain = theirs(IDS).logits
        tuned = peer.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
        found = tuned(IDS).logits
    with torch.no_grad():
        wanted = one.logits(hidden(one, IDS))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (plain - wanted).abs().max() > 0.01
