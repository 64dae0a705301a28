"""ModelConfig: every spelling and shape of the family (field cases F01-F04), and what is refused before any work starts."""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rorqual.config import ABSENT, ModelConfig, RopeScaling
from rorqual.errors import ConfigError
from rorqual.model.rope import rope_parameters
from tests.tiny import t0

YARN = {"factor": 4, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1, "mscale": 1, "mscale_all_dim": 1}


def raw(**changes: Any) -> dict[str, Any]:
    """T0's config.json; a change to `...` removes the key."""
    return {key: value for key, value in {**t0().to_hf(), **changes}.items() if value is not ...}


# ---------------------------------------------------------------------- round trips


@given(
    rank=st.sampled_from([None, 1, 48]),
    layers=st.integers(1, 9),
    dense=st.integers(0, 9),
    freq=st.integers(1, 3),
    mtp=st.integers(0, 3),
    shared=st.integers(0, 3),
    tied=st.booleans(),
    scaling=st.sampled_from([None, RopeScaling(4.0, 64), RopeScaling(40.0, 4096, 16.0, 2.0, 0.707, 0.707)]),
)
def test_any_shape_survives_config_json(rank, layers, dense, freq, mtp, shared, tied, scaling) -> None:  # type: ignore[no-untyped-def]
    config = t0(
        q_lora_rank=rank, num_hidden_layers=layers, first_k_dense_replace=dense, moe_layer_freq=freq, num_nextn_predict_layers=mtp,
        n_shared_experts=shared, tie_word_embeddings=tied, rope_scaling=scaling,
    )  # fmt: skip
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_from_file_reads_a_folder_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw()))
    assert ModelConfig.from_file(tmp_path) == ModelConfig.from_file(tmp_path / "config.json") == t0()


def test_a_softmax_router_is_exported_as_v2_whatever_it_was_called() -> None:
    out = t0(scoring_func="softmax", topk_method="greedy", num_nextn_predict_layers=0).to_hf()
    assert (out["model_type"], out["architectures"]) == ("deepseek_v2", ["DeepseekV2ForCausalLM"])
    assert t0().to_hf()["model_type"] == "deepseek_v3"


# ---------------------------------------------------------------------- F01 query compression


def test_null_zero_and_absent_query_ranks_are_three_inputs() -> None:
    null, zero, absent = (ModelConfig.from_hf(raw(q_lora_rank=value)) for value in (None, 0, ...))
    assert null == zero and null.q_lora_rank is None
    assert absent.q_lora_rank == ABSENT  # never transformers' default of 1536
    assert null.to_hf()["q_lora_rank"] is None
    for use in (absent.settled, absent.to_hf):
        with pytest.raises(ConfigError, match="q_lora_rank is absent"):
            use()


@pytest.mark.parametrize("rank", [-2, 1.5, True, "48"])
def test_other_query_ranks_are_refused(rank: object) -> None:
    with pytest.raises(ConfigError, match="q_lora_rank"):
        ModelConfig.from_hf(raw(q_lora_rank=rank))


# ---------------------------------------------------------------------- F02 rope scaling

T0_INV_FREQ = [1, 0.0625, 0.0025, 0.00025]


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"type": "yarn", **YARN}},
        {
            "rope_scaling": {
                "rope_type": "yarn",
                **{key: float(value) for key, value in YARN.items()},
                "original_max_position_embeddings": 64,
            }
        },
        {"rope_scaling": {"type": "yarn", "rope_type": "yarn", **YARN}},
        {"rope_scaling": ..., "rope_theta": ..., "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, **YARN}},
        {"rope_scaling": {"type": "yarn", **YARN}, "rope_parameters": {"rope_theta": 10000.0}},
    ],
    ids=["type, ints", "rope_type, floats", "both keys", "rope_parameters", "rope_parameters with theta only"],
)
def test_all_spellings_of_yarn_are_one_configuration(changes: dict[str, Any]) -> None:
    config = ModelConfig.from_hf(raw(**changes))
    assert config == t0()
    rope = rope_parameters(config)
    assert rope.inv_freq == pytest.approx(T0_INV_FREQ, rel=1e-6)
    assert rope.softmax_scale == pytest.approx(0.264642, abs=5e-7)


def test_an_unknown_rope_key_warns_once_and_changes_nothing() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = ModelConfig.from_hf(raw(rope_scaling={"type": "yarn", **YARN, "attn_factor": 1.0}))
    assert config == t0()
    assert [str(one.message) for one in caught] == ["rope_scaling has fields that this package does not use: attn_factor"]


@pytest.mark.parametrize("scaling", [..., None, {}, {"rope_type": "default"}, {"type": "default"}, {"type": None}])
def test_all_forms_of_no_scaling_are_one_configuration(scaling: object) -> None:
    config = ModelConfig.from_hf(raw(rope_scaling=scaling))
    assert config == t0(rope_scaling=None)
    rope = rope_parameters(config)
    assert rope.inv_freq == pytest.approx([1, 0.1, 0.01, 0.001], rel=1e-6)
    assert rope.softmax_scale == pytest.approx(0.204124, abs=5e-7)


@pytest.mark.parametrize(
    ("scaling", "field"),
    [
        ({"type": "yarnn", **YARN}, "yarnn"),
        ({"type": "yarn", **YARN, "factor": None}, "factor"),
        ({"type": "yarn", "original_max_position_embeddings": 64}, "factor"),
        ({"type": "yarn", "factor": 4}, "original_max_position_embeddings"),
        ({"type": "yarn", **YARN, "factor": 0.5}, "factor"),
        ({"type": "yarn", **YARN, "factor": float("inf")}, "factor"),
        ({"type": "yarn", **YARN, "factor": "4"}, "factor"),
        ({"type": "yarn", **YARN, "original_max_position_embeddings": 0}, "original_max_position_embeddings"),
        ({"type": "yarn", **YARN, "beta_fast": 0.5}, "beta_fast"),
        ({"type": "yarn", **YARN, "beta_slow": 0}, "beta_slow"),
        ({"type": "yarn", "rope_type": "linear", **YARN}, "two kinds"),
        (YARN, "neither `type` nor `rope_type`"),
        ([4], "must be an object"),
    ],
)
def test_bad_rope_scaling_is_refused_by_field(scaling: object, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        ModelConfig.from_hf(raw(rope_scaling=scaling))


def test_two_places_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="two kinds"):
        ModelConfig.from_hf(raw(rope_scaling={"type": "yarn", **YARN}, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}))


def test_an_original_length_of_four_gives_finite_frequencies() -> None:
    config = ModelConfig.from_hf(raw(rope_scaling={"type": "yarn", **YARN, "original_max_position_embeddings": 4}))
    frequencies = rope_parameters(config).inv_freq
    assert all(math.isfinite(value) and value > 0 for value in frequencies)


def test_theta_of_rope_parameters_wins_and_zero_is_refused() -> None:
    assert ModelConfig.from_hf(raw(rope_scaling=..., rope_parameters={"rope_type": "default", "rope_theta": 5e4})).rope_theta == 5e4
    for theta in (0, 1, -3.0, float("nan"), "x"):
        with pytest.raises(ConfigError, match="rope_theta"):
            ModelConfig.from_hf(raw(rope_theta=theta))


# ---------------------------------------------------------------------- F03 gating


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_group": 3, "topk_group": 1}, r"n_routed_experts \(8\) must be divisible by n_group \(3\); use 6 or 9, or set n_group=1"),
        (
            {"n_group": 8, "topk_group": 1},
            r"topk_group \(1\) groups of 1 experts leave 1 candidates, fewer than num_experts_per_tok \(2\); raise topk_group to 2",
        ),
        ({"n_group": 4, "topk_group": 5}, r"topk_group \(5\) must be at most n_group \(4\)"),
        ({"num_experts_per_tok": 9}, r"num_experts_per_tok \(9\) must be at most n_routed_experts \(8\)"),
        ({"topk_method": "best"}, "topk_method .'best'. is not known"),
        ({"scoring_func": "tanh"}, "scoring_func .'tanh'. is not known"),
        ({"routed_scaling_factor": 0.0}, "routed_scaling_factor"),
        ({"routed_scaling_factor": float("nan")}, "routed_scaling_factor"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok"),
    ],
)
def test_gating_that_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_hf(raw(**changes))


@pytest.mark.parametrize("groups", [..., None, 0, 1])
def test_absent_groups_are_one_group(groups: object) -> None:
    config = ModelConfig.from_hf(raw(n_group=groups, topk_group=...))
    assert (config.n_group, config.topk_group) == (1, 1)


def test_v2_style_gating_is_read_with_v2_defaults() -> None:
    v2 = ModelConfig.from_hf(
        raw(
            model_type="deepseek_v2",
            topk_method=...,
            scoring_func=...,
            norm_topk_prob=...,
            routed_scaling_factor=...,
            n_group=...,
            topk_group=...,
        )
    )
    assert (v2.topk_method, v2.scoring_func, v2.norm_topk_prob, v2.routed_scaling_factor) == ("greedy", "softmax", False, 1.0)
    v3 = ModelConfig.from_hf(raw(topk_method=..., scoring_func=..., norm_topk_prob=..., routed_scaling_factor=...))
    assert (v3.topk_method, v3.scoring_func, v3.norm_topk_prob, v3.routed_scaling_factor) == ("noaux_tc", "sigmoid", True, 2.5)


# ---------------------------------------------------------------------- F04 other sizes


@pytest.mark.parametrize(
    ("changes", "moe_layers"),
    [
        ({}, (1, 2, 3)),
        ({"v_head_dim": 20, "num_attention_heads": 3, "num_key_value_heads": 3, "kv_lora_rank": 24, "vocab_size": 259}, (1, 2, 3)),
        ({"n_shared_experts": 2}, (1, 2, 3)),
        ({"n_shared_experts": 0}, (1, 2, 3)),
        ({"n_shared_experts": None}, (1, 2, 3)),
        ({"first_k_dense_replace": 0}, (0, 1, 2, 3)),
        ({"first_k_dense_replace": 3}, (3,)),
        ({"first_k_dense_replace": 0, "moe_layer_freq": 2}, (0, 2, 3)),
        ({"num_nextn_predict_layers": 0}, (1, 2)),
        ({"num_nextn_predict_layers": None}, (1, 2)),
        ({"num_nextn_predict_layers": 2}, (1, 2, 3, 4)),
        ({"num_nextn_predict_layers": ..., "num_mtp_layers": 2}, (1, 2, 3, 4)),
        ({"n_routed_experts": None, "moe_intermediate_size": None, "num_experts_per_tok": None}, ()),
    ],
)
def test_which_blocks_have_experts(changes: dict[str, Any], moe_layers: tuple[int, ...]) -> None:
    config = ModelConfig.from_hf(raw(**changes))
    assert config.moe_layers == moe_layers
    assert config.num_blocks == 3 + config.num_nextn_predict_layers


# ---------------------------------------------------------------------- what no member has


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type .'llama'. is not of this family"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act .'gelu'."),
        ({"num_key_value_heads": 2}, r"num_key_value_heads \(2\) must equal num_attention_heads \(4\)"),
        ({"num_key_value_heads": 2, "rope_scaling": None}, "num_key_value_heads"),
        ({"hidden_size": ..., "vocab_size": None}, "lacks vocab_size, hidden_size"),
        ({"hidden_size": 64.0}, "hidden_size .64.0. must be a whole number"),
        ({"hidden_size": True}, "hidden_size"),
        ({"num_hidden_layers": 1e9}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"n_routed_experts": 10**9, "n_group": 1, "topk_group": 1}, "n_routed_experts"),
        ({"num_nextn_predict_layers": -1}, "num_nextn_predict_layers"),
        ({"qk_rope_head_dim": 7}, r"qk_rope_head_dim \(7\) must be even"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps"),
        ({"initializer_range": float("inf")}, "initializer_range"),
        ({"eos_token_id": 256}, r"eos_token_id \(256\) must be a token id between 0 and vocab_size - 1 \(255\)"),
        ({"bos_token_id": "0"}, "bos_token_id"),
        ({"eos_token_id": []}, "eos_token_id"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"quantization_config": "fp8"}, "quantization_config"),
    ],
)
def test_other_bad_fields_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_hf(raw(**changes))


def test_the_first_of_several_eos_ids_is_taken() -> None:
    assert ModelConfig.from_hf(raw(eos_token_id=[7, 1])).eos_token_id == 7


# ---------------------------------------------------------------------- F06 hostile files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ' * 200 + "1" + "}" * 200, "nested 200 levels deep"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "holds a list"),
        ("{", "not JSON"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "not JSON"),
        (" " * 1_000_001, "at most 1 MB"),
    ],
    ids=["deep", "very deep", "list", "cut", "huge number", "huge"],
)
def test_hostile_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_file(tmp_path)


def test_absent_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        ModelConfig.from_file(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not JSON"):
        ModelConfig.from_file(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="not a regular file"):
        ModelConfig.from_file(tmp_path)


def test_remote_code_entries_are_ignored(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w').close()")
    (tmp_path / "config.json").write_text(json.dumps(raw(auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})))
    config = ModelConfig.from_file(tmp_path)
    assert config == t0() and "auto_map" not in config.to_hf() and not marker.exists()
