"""The members of the family: their published shapes survive config.json, and what no source confirms is named."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from rorqual.config import ModelConfig
from rorqual.errors import ConfigError
from rorqual.model.rope import rope_parameters
from rorqual.presets import PRESETS, member, preset

NAMES = ("v3_671b", "v3_0324", "v3_1", "r1", "v2_236b", "v2_lite_16b", "moonlight_16b", "kimi_k2")


def test_all_members_are_there() -> None:
    assert tuple(PRESETS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_survives_config_json(name: str) -> None:
    for config in (preset(name), member(name).released):
        assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"preset \('v4'\) is not known; there are .*v3_671b"):
        preset("v4")


def test_successors_of_v3_differ_in_the_scale_format_alone() -> None:
    assert preset("v3_671b") == preset("v3_0324") == preset("v3_1") == preset("r1")
    v3, v3_1 = member("v3_671b").released.quantization_config, member("v3_1").released.quantization_config
    assert v3 == {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    assert v3_1 == {**v3, "scale_fmt": "ue8m0"}
    assert member("r1").released == member("v3_0324").released == member("v3_671b").released


@pytest.mark.parametrize("name", NAMES)
def test_quirks_of_each_member(name: str) -> None:
    config, released = preset(name), member(name).released
    v2, moonshot = name.startswith("v2"), name in ("moonlight_16b", "kimi_k2")
    assert config.vocab_size == (102400 if v2 else 163840 if moonshot else 129280)
    assert config.model_type == ("deepseek_v2" if v2 else "kimi_k2" if name == "kimi_k2" else "deepseek_v3")
    assert (config.scoring_func, config.norm_topk_prob) == (("softmax", False) if v2 else ("sigmoid", True))
    assert (config.q_lora_rank is None) == (name in ("v2_lite_16b", "moonlight_16b"))
    assert (config.n_group == 1) == (name == "v2_lite_16b" or moonshot)
    assert config.num_nextn_predict_layers == (0 if v2 or moonshot else 1)
    assert config.rope_theta == (50000.0 if moonshot else 10000.0)
    assert (config.rope_scaling is None) == (name == "moonlight_16b")
    assert (released.quantization_config is None) == (v2 or name == "moonlight_16b")
    assert not config.tie_word_embeddings and config.quantization_config is None


@pytest.mark.parametrize(
    ("name", "scale"),
    [("v3_671b", 0.1352338), ("v2_236b", 0.1147214), ("v2_lite_16b", 0.1147214), ("moonlight_16b", 0.0721688), ("kimi_k2", 0.1308608)],
)
def test_softmax_scale(name: str, scale: float) -> None:
    assert rope_parameters(preset(name)).softmax_scale == pytest.approx(scale, rel=2e-6)


def test_equal_betas_of_kimi_k2_are_a_ramp_of_one_pair() -> None:
    rope = rope_parameters(preset("kimi_k2"))
    plain = [50000.0 ** (-2 * k / 64) for k in range(32)]
    assert rope.inv_freq[:20] == pytest.approx(plain[:20]) and rope.inv_freq[20:] == pytest.approx([f / 32 for f in plain[20:]])


def test_what_is_not_confirmed_names_fields() -> None:
    known = {f.name for f in fields(ModelConfig)}
    for name, one in PRESETS.items():
        assert set(one.unverified) <= known and all(one.unverified.values())
        assert bool(one.unverified) == (name in ("moonlight_16b", "kimi_k2"))
    assert "1e-5" in member("kimi_k2").unverified["rms_norm_eps"]
