"""Weights kept in FP8: the results of the BF16 twin, only what is used is dequantised, nothing larger is allocated on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rorqual.checkpoint import hf
from rorqual.errors import CheckpointError, ConfigError
from rorqual.fp8.linear import Fp8GroupedLinear, Fp8Linear, empty_model, fill_random, targets
from rorqual.inference.sampler import SamplingParams
from rorqual.kernels import fp8
from tests.checkpoint import members
from tests.reference.loop import generate

IDS = torch.tensor([[3, 9, 27, 81, 5, 7, 11, 2]])


@pytest.mark.parametrize("name", ["v3_671b", "v3_1", "kimi_k2"])
def test_logits_and_tokens_are_the_twins(tmp_path: Path, name: str) -> None:
    folder = members.write(tmp_path / "fp8", name)
    kept, report = hf.load(folder, weights="fp8")
    twin, _ = hf.load(folder, weights="fp32")
    assert report.missing == [] and any(isinstance(module, Fp8GroupedLinear) for module in kept.modules())
    with torch.no_grad():
        assert torch.equal(kept.logits(kept(IDS).hidden), twin.logits(twin(IDS).hidden))
    params = SamplingParams(max_tokens=12, temperature=0)
    drafts = min(1, kept.config.num_nextn_predict_layers)
    texts = [generate(model, [[3, 9, 27]], params, num_drafts=drafts).completions[0].token_ids for model in (kept, twin)]
    assert texts[0] == texts[1]


def test_absorbed_attention_uses_the_dequantised_matrix(tmp_path: Path) -> None:
    kept, _ = hf.load(members.write(tmp_path / "fp8", "v3_671b"), weights="fp8")
    for block in kept.model.layers:
        block.self_attn.attention_form = "absorbed"
    with torch.no_grad():
        absorbed = kept(IDS).hidden
        for block in kept.model.layers:
            block.self_attn.attention_form = "expanded"
        torch.testing.assert_close(kept(IDS).hidden, absorbed, atol=1e-4, rtol=1e-4)


def test_gate_and_up_keep_their_own_scales() -> None:
    """Field case F08: 160 + 160 rows are 2 + 2 row blocks; fused they would be 3."""
    layer = Fp8GroupedLinear(1, 64, 320, (128, 128), parts=2)
    assert layer.scale_inv.shape == (1, 2, 2, 1)
    layer.codes.copy_(torch.ones(1, 320, 64).to(torch.float8_e4m3fn).view(torch.uint8))
    layer.scale_inv.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 2, 2, 1))
    weight = layer.expert_weight(0)[:, 0]
    assert [weight[i].item() for i in (0, 127, 128, 159, 160, 287, 288, 319)] == [1, 1, 2, 2, 3, 3, 4, 4]


def test_only_experts_with_rows_are_dequantised(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Fp8GroupedLinear(4, 8, 6, (128, 128))
    layer.codes.random_(0, 120)
    layer.scale_inv.fill_(0.01)
    used: list[int] = []
    whole = layer.expert_weight
    monkeypatch.setattr(layer, "expert_weight", lambda expert: (used.append(expert), whole(expert))[1])
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    y = layer(x, torch.tensor([2, 2, 5, 5], dtype=torch.int32))
    assert used == [0, 2]
    assert torch.equal(y[2:], x[2:] @ whole(2).t()) and torch.equal(y[:2], x[:2] @ whole(0).t())


def test_training_is_refused() -> None:
    layer = Fp8Linear(4, 4, (128, 128))
    with pytest.raises(ConfigError, match="for inference"):
        layer(torch.ones(1, 4, requires_grad=True))


def test_no_cast_touches_codes_or_scales(tmp_path: Path) -> None:
    folder = members.write(tmp_path / "fp8", "v3_671b")
    kept, _ = hf.load(folder, weights="fp8")
    layer = kept.model.layers[3].mlp.experts.down_proj
    codes, scales = layer.codes.clone(), layer.scale_inv.clone()
    kept.to(torch.bfloat16)
    assert torch.equal(layer.codes, codes) and torch.equal(layer.scale_inv, scales)
    with pytest.raises(CheckpointError, match="computes in FP32"):
        hf.load(folder, weights="fp8", dtype=torch.bfloat16)


def test_plain_folders_are_refused(tmp_path: Path) -> None:
    folder = members.write(tmp_path / "bf16", "v2_lite_16b")
    with pytest.raises(CheckpointError, match="is not in FP8"):
        hf.load(folder, weights="fp8")
    with pytest.raises(CheckpointError, match="must be one of fp32, bf16, fp8"):
        hf.load(folder, weights="int4")
    with pytest.raises(ConfigError, match="no quantization_config"):
        empty_model(hf.load(folder)[0].config)


def test_storage_is_one_byte_a_weight_and_names_are_official(tmp_path: Path) -> None:
    kept, _ = hf.load(members.write(tmp_path / "fp8", "v3_671b"), weights="fp8")
    coded = targets(kept)
    assert "model.layers.3.mlp.experts.15.up_proj.weight" in coded and "model.layers.5.eh_proj.weight" not in coded
    assert all(codes.dtype == torch.uint8 and scales.shape == fp8.scale_shape(*codes.shape, (128, 128)) for codes, scales in coded.values())
    assert kept.model.embed_tokens.weight.dtype == torch.bfloat16 and kept.lm_head.weight.dtype == torch.bfloat16
    assert kept.model.layers[3].mlp.gate.weight.dtype == torch.float32


def test_random_weights_are_finite_and_of_the_size_asked_for() -> None:
    config = members_config()
    model, again = empty_model(config), empty_model(config)
    fill_random(model, seed=1)
    fill_random(again, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    weight = model.model.layers[3].mlp.experts.gate_up_proj.expert_weight(0)
    assert weight.isfinite().all() and 0.004 < weight.std().item() < 0.008
    assert all(abs((weight[:, column] < 0).float().mean().item() - 0.5) < 0.2 for column in range(16))
    with torch.no_grad():
        assert model.logits(model(IDS).hidden).isfinite().all()


def members_config():  # type: ignore[no-untyped-def]
    from rorqual.config import ModelConfig

    return ModelConfig.from_hf(members.config_json("v3_671b"))
