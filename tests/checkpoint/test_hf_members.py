"""Every member's scaled-down folder: read, run, written and read again to the bit, plain and in FP8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rorqual.checkpoint import hf
from rorqual.checkpoint.logical import logical_tensors
from rorqual.checkpoint.names import copies
from rorqual.config import ModelConfig
from rorqual.inference.sampler import SamplingParams
from rorqual.kernels import fp8
from rorqual.model.transformer import CausalLM
from rorqual.presets import member
from rorqual.tokenizer import bpe
from tests.checkpoint import members
from tests.checkpoint.folders import table
from tests.reference.loop import generate

IDS = torch.randint(0, 320, (1, 80), generator=torch.Generator().manual_seed(1))


def logits(model: CausalLM) -> Tensor:
    with torch.no_grad():
        return model.logits(model(IDS).hidden)


def same_values(model: CausalLM, want: dict[str, Tensor]) -> bool:
    own = logical_tensors(model)
    names = set(want) - set(copies(model.config))
    return set(own) == names and all(torch.equal(own[name].float(), want[name].float()) for name in names)


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    def same(x: Tensor, y: Tensor) -> bool:
        return x.dtype == y.dtype and x.shape == y.shape and torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))

    return a.keys() == b.keys() and all(same(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("name", members.NAMES)
def test_the_preset_is_the_published_configuration(name: str) -> None:
    released = member(name).released
    published = ModelConfig.from_hf(members.PUBLISHED[name])
    assert published.initializer_range == 0.02  # the file's; the report trains with 0.006, as the presets do
    assert published.with_(initializer_range=released.initializer_range) == released
    scaled = ModelConfig.from_hf(members.config_json(name))
    same = ("model_type", "topk_method", "scoring_func", "norm_topk_prob", "routed_scaling_factor", "rms_norm_eps", "rope_theta", "n_shared_experts",
            "n_group", "topk_group", "first_k_dense_replace", "num_nextn_predict_layers", "tie_word_embeddings", "quantization_config")  # fmt: skip
    assert all(getattr(scaled, field) == getattr(released, field) for field in same)
    assert (scaled.q_lora_rank is None, scaled.rope_scaling is None) == (released.q_lora_rank is None, released.rope_scaling is None)


@pytest.mark.parametrize("name", members.NAMES)
def test_plain_folders(tmp_path: Path, name: str) -> None:
    folder = members.write(tmp_path / "released", name, weights="bf16")
    model, report = hf.load(folder)
    released = table(folder)
    assert same_values(model, released)
    assert set(report.loaded) == set(released) and (report.skipped, report.missing, report.notices) == ([], [], [])
    assert logits(model).isfinite().all() and logits(model).std() > 0.3
    # written and read again
    out = hf.export(model, None, tmp_path / "ours", dtype="bf16", shard_size=1_000_000)
    assert same_bits(table(out), released) and len(list(out.glob("*.safetensors"))) > 3
    back, report = hf.load(out)
    assert same_values(back, released) and torch.equal(logits(back), logits(model)) and report.notices == []
    assert back.config == model.config == ModelConfig.from_hf(json.loads((out / "config.json").read_text()))


@pytest.mark.parametrize(("name", "scales"), [("v3_671b", "f32"), ("v3_671b", "bf16"), ("v3_1", "e8m0"), ("kimi_k2", "f32"), ("v2_lite_16b", "f32")])  # fmt: skip
def test_twins_hold_the_same_values(tmp_path: Path, name: str, scales: str) -> None:
    """A member's FP8 tensors, dequantised by the package's kernel, are its plain twin's to the bit, ragged blocks included."""
    coded = table(members.write(tmp_path / "fp8", name, weights="fp8", scales=scales))
    plain = table(members.write(tmp_path / "bf16", name, weights="bf16", scales=scales))
    back = {
        weight: fp8.dequantize(value, coded[f"{weight}_scale_inv"], (128, 128)) if value.dtype == torch.float8_e4m3fn else value
        for weight, value in coded.items()
        if not weight.endswith("_scale_inv")
    }
    assert same_bits(back, plain)


@pytest.mark.parametrize("name", [name for name in members.NAMES if name not in ("v3_0324", "v3_1", "r1")])
def test_generation_is_the_same_with_every_number_of_drafts(tmp_path: Path, name: str) -> None:
    model, _ = hf.load(members.write(tmp_path, name, weights="bf16"))
    params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
    texts = [
        generate(model, IDS[:, :70].tolist(), params, num_drafts=drafts).completions[0].token_ids
        for drafts in range(model.config.num_nextn_predict_layers + 1)
    ]
    assert len(texts[0]) == 6 and all(text == texts[0] for text in texts)


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {"tie_word_embeddings": True, "num_nextn_predict_layers": 2}, {"q_lora_rank": ...}], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", ["v3_671b", "moonlight_16b"])
def test_quirks_that_members_could_have(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    """Tied heads, two modules, and a config.json that does not say whether queries are compressed."""
    folder = members.write(
        tmp_path / "released", name, weights="bf16", **{key: value for key, value in changes.items() if value is not ...}
    )
    raw = {key: value for key, value in json.loads((folder / "config.json").read_text()).items() if changes.get(key) is not ...}
    (folder / "config.json").write_text(json.dumps(raw))
    model, report = hf.load(folder)
    assert same_values(model, table(folder)) and report.notices == []
    assert (model.config.q_lora_rank is None) == (name == "moonlight_16b")
    assert (model.head_weight is model.model.embed_tokens.weight) == ("tie_word_embeddings" in changes)
    out = hf.export(model, None, tmp_path / "ours", dtype="bf16")
    assert same_bits(table(out), table(folder))


@pytest.mark.parametrize("name", [name for name in members.NAMES if name not in members.KIMI])
def test_tokenizers_of_the_tiny_folders(tmp_path: Path, name: str) -> None:
    members.write_tokenizer(tmp_path, name)
    tokenizer, config = bpe.load(tmp_path), members.config_json(name)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (config["bos_token_id"], config["eos_token_id"])
    assert tokenizer.vocab_size <= config["vocab_size"]
    assert tokenizer.decode(tokenizer.encode("hello world, the 1234 \u6df1\u5ea6\n")) == "hello world, the 1234 \u6df1\u5ea6\n"
    assert len(tokenizer.encode("hello world")) == 2
    digits = tokenizer.encode("123")
    assert len(digits) == (3 if name.startswith("v2") else 1)  # V2 splits digits one by one


def test_ranks_are_a_vocabulary_of_merges() -> None:
    ranks = members.ranks()
    assert sorted(ranks.values()) == list(range(len(ranks))) and all(ranks[bytes([byte])] == byte for byte in range(256))
    for token, rank in ranks.items():
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        assert len(token) == 1 or any(a in ranks and b in ranks and max(ranks[a], ranks[b]) < rank for a, b in cuts)
