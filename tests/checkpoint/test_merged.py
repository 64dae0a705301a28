"""Base and adapter as one source: every weight is W + scale B A rounded once, over FP32, BF16 and FP8 folders; what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rorqual.adapters import lora, peft
from rorqual.adapters.config import LoraConfig
from rorqual.checkpoint import hf
from rorqual.checkpoint.convert import convert
from rorqual.checkpoint.merged import MergedSource
from rorqual.checkpoint.source import FolderSource
from rorqual.errors import CheckpointError
from rorqual.model.transformer import CausalLM
from tests.adapters.test_lora import ALL, model, stir

CONFIG = LoraConfig(rank=3, targets=ALL)


def adapter(root: Path, base: CausalLM) -> CausalLM:
    """Puts a trained-looking adapter on the model and writes it."""
    one = stir(lora.apply(base, CONFIG), size=0.1)
    (root / "adapter").mkdir()
    peft.save(one, CONFIG, "base", root / "adapter")
    return one


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_is_written_is_the_merged_model(tmp_path: Path, dtype):
    base = hf.export(model(), None, tmp_path / "base", dtype=dtype)
    loaded = hf.load(base, weights=dtype)[0]
    one = adapter(tmp_path, loaded)
    with FolderSource(base) as source:
        convert(MergedSource(source, peft.Adapter.read(tmp_path / "adapter")), None, tmp_path / "out")
    ours, theirs = lora.merge(one).state_dict(), hf.load(tmp_path / "out", weights=dtype)[0].state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=0 if dtype == "bf16" else 1e-6, msg=name)


def test_an_fp8_base_is_quantised_anew_where_it_changed(tmp_path: Path):
    base = hf.export(model(), None, tmp_path / "base", dtype="fp8")
    one = adapter(tmp_path, hf.load(base, weights="fp8")[0])
    with FolderSource(base) as source:
        merged = MergedSource(source, peft.Adapter.read(tmp_path / "adapter"))
        name = "model.layers.0.self_attn.o_proj.weight"
        assert (source.dtype(name), merged.dtype(name)) == ("F8_E4M3", "BF16")
        convert(merged, None, tmp_path / "fp8", to="fp8")
        convert(merged, None, tmp_path / "fp32", to="fp32")
    dequantised, again = hf.load(tmp_path / "fp32")[0].state_dict(), hf.load(tmp_path / "fp8")[0].state_dict()
    for name, layer in lora.adapted(one).items():
        stacked = isinstance(layer, lora.LoraGroupedLinear)
        base_weight = torch.stack([layer.base.expert_weight(e) for e in range(8)]) if stacked else layer.base.dense_weight()
        wanted = base_weight + layer.delta()
        torch.testing.assert_close(dequantised[f"{name}.weight"], wanted.detach(), rtol=2**-8, atol=1e-6)  # rounded once to BF16
        torch.testing.assert_close(again[f"{name}.weight"], wanted.detach(), rtol=2**-3, atol=2e-3)  # E4M3 keeps three bits


def test_an_adapter_of_another_model_is_refused(tmp_path: Path):
    adapter(tmp_path, model(num_hidden_layers=4))
    base = hf.export(model(), None, tmp_path / "base")
    with FolderSource(base) as source, pytest.raises(CheckpointError, match="belongs to another model"):
        MergedSource(source, peft.Adapter.read(tmp_path / "adapter"))
