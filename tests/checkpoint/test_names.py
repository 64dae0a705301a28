"""Which names a folder must hold, and what becomes of every name that it does hold (field cases F01, F05, F07, F17)."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from rorqual.checkpoint.names import copies, expected, match, settle
from rorqual.config import ABSENT
from rorqual.errors import CheckpointError, ConfigError
from rorqual.planner.inventory import inventory
from rorqual.planner.params import count
from rorqual.presets import preset
from tests.tiny import t0

SHAPES: list[dict[str, Any]] = [
    {}, {"q_lora_rank": None}, {"n_shared_experts": 2}, {"n_shared_experts": 0}, {"first_k_dense_replace": 0},
    {"first_k_dense_replace": 3}, {"first_k_dense_replace": 0, "moe_layer_freq": 2}, {"num_nextn_predict_layers": 0}, {"num_nextn_predict_layers": 2},
    {"tie_word_embeddings": True}, {"n_routed_experts": 0}, {"topk_method": "greedy", "scoring_func": "softmax"},
    {"v_head_dim": 20, "num_attention_heads": 3, "kv_lora_rank": 24, "vocab_size": 259},
]  # fmt: skip


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_names_and_shapes_are_the_planners(changes: dict[str, Any]) -> None:
    config = t0(**changes)
    here = dict(expected(config))
    repeated = copies(config)
    assert {name: here.get(name) or here[repeated[name]] for name in [*here, *repeated]} == {
        one.name: one.shape for one in inventory(config)
    }
    assert set(here).isdisjoint(repeated)


def test_the_671b_layout_has_its_known_size() -> None:
    config = preset("v3_671b")
    table = dict(expected(config))
    linear = sum(
        len(shape) == 2 and not name.endswith(("embed_tokens.weight", "lm_head.weight", "gate.weight", "eh_proj.weight"))
        for name, shape in table.items()
    )
    assert len(table) + len(copies(config)) + linear == 91_991  # one weight_scale_inv per FP8 matrix
    assert (
        sum(_size(shape) for name, shape in table.items() if not name.startswith("model.layers.61."))
        == count(config).total
        == 671_026_419_200
    )


def _size(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) == 2 else 1)


def test_a_hostile_expert_count_costs_nothing() -> None:
    config = t0(n_routed_experts=100_000, n_group=1, topk_group=1, num_hidden_layers=10_000)
    assert len(list(islice(expected(config), 50))) == 50
    with pytest.raises(CheckpointError, match="the folder lacks 'model.embed_tokens.weight'"):
        match(config, {})


def shapes(prefix: str = "", **changes: Any) -> dict[str, tuple[int, ...]]:
    """A folder's table for T0 with changes, MTP copies included."""
    config = t0(**changes)
    table = dict(expected(config))
    table |= {name: table[original] for name, original in copies(config).items()}
    return {prefix + name: shape for name, shape in table.items()}


# ---------------------------------------------------------------------- F01


def test_an_absent_rank_follows_the_tensors() -> None:
    absent = t0(q_lora_rank=ABSENT)
    assert settle(absent, shapes()).q_lora_rank == 48
    assert settle(absent, shapes(q_lora_rank=None)).q_lora_rank is None
    assert settle(absent, {"layers.0.self_attn.q_a_proj.weight": (7, 64)}).q_lora_rank == 7
    stated = t0()
    assert settle(stated, shapes(q_lora_rank=None)) is stated
    assert match(absent, shapes(q_lora_rank=None)).config == t0(q_lora_rank=None)


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"model.layers.0.self_attn.q_proj.weight": (96, 64), "model.layers.1.self_attn.q_a_proj.weight": (48, 64)},
        {"model.layers.0.self_attn.q_a_proj.weight": (48, 64), "model.layers.1.self_attn.q_a_proj.weight": (47, 64)},
    ],
)
def test_tensors_that_do_not_settle_the_rank_are_refused(found: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(CheckpointError, match="the tensors do not settle it"):
        settle(t0(q_lora_rank=ABSENT), found)


def test_a_stated_rank_that_the_tensors_contradict_is_refused() -> None:
    with pytest.raises(CheckpointError, match="lacks 'model.layers.0.self_attn.q_a_proj.weight'.*q_lora_rank is 48"):
        match(t0(), shapes(q_lora_rank=None))
    with pytest.raises(CheckpointError, match="lacks 'model.layers.0.self_attn.q_proj.weight'.*q_lora_rank is None"):
        match(t0(q_lora_rank=None), shapes())
    with pytest.raises(CheckpointError, match=r"q_a_proj.weight' has shape \[48, 64\], config.json makes it \[47, 64\]"):
        match(t0(q_lora_rank=47), shapes())
    with pytest.raises(ConfigError):
        list(expected(t0(q_lora_rank=ABSENT)))


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize("layers", [3, 12])
def test_names_without_the_prefix_are_the_same_names(layers: int) -> None:
    table = shapes(num_hidden_layers=layers)
    bare = {name.removeprefix("model."): shape for name, shape in table.items()}
    found = match(t0(num_hidden_layers=layers), bare)
    assert set(found.sources) | set(copies(found.config)) == set(table)
    assert found.sources["model.layers.1.input_layernorm.weight"] == "layers.1.input_layernorm.weight"
    assert (found.skipped, found.missing, found.notices) == ([], [], [])
    with pytest.raises(CheckpointError, match="'model.norm.weight' is there twice"):
        match(t0(), {**shapes(), "norm.weight": (64,)})


def test_every_missing_renamed_or_misshapen_tensor_is_named() -> None:
    table = shapes()
    shared = set(copies(t0()))
    for name in table:
        if name in shared:
            continue
        rest = {key: shape for key, shape in table.items() if key != name}
        with pytest.raises(CheckpointError, match="lacks") as caught:
            match(t0(), rest)
        assert repr(name) in str(caught.value)
        with pytest.raises(CheckpointError, match="lacks") as caught:
            match(t0(), {**rest, f"{name}x": table[name]})
        assert repr(name) in str(caught.value) and (repr(f"{name}x") in str(caught.value) or "layers.3" in name)
        with pytest.raises(CheckpointError, match="has shape") as caught:
            match(t0(), {**rest, name: (*table[name], 1)})
        assert repr(name) in str(caught.value)


def test_numbers_that_only_look_like_layers_are_not() -> None:
    table = shapes()
    odd = [
        "model.layers.01.input_layernorm.weight",
        "model.layers.-1.x",
        "model.layers.99999999999999999999.x",
        "model.layers.1x.y",
        "inv_freq",
    ]
    found = match(t0(), {**table, **dict.fromkeys(odd, (1,))})
    assert set(found.skipped) == set(odd) and len(found.notices) == 1


# ---------------------------------------------------------------------- F05, F07


def test_a_head_is_never_made_up() -> None:
    table = {name: shape for name, shape in shapes().items() if name != "lm_head.weight"}
    with pytest.raises(CheckpointError, match="lacks 'lm_head.weight'; tie_word_embeddings is false, and a head is never made up"):
        match(t0(), table)
    assert "lm_head.weight" not in match(t0(tie_word_embeddings=True), table).sources


def test_a_tied_head_that_is_there_repeats_the_embedding() -> None:
    found = match(t0(tie_word_embeddings=True), shapes())
    assert found.repeated["lm_head.weight"] == found.repeated["model.layers.3.shared_head.head.weight"] == "model.embed_tokens.weight"
    assert match(t0(), shapes()).repeated["model.layers.3.shared_head.head.weight"] == "lm_head.weight"


def test_a_bias_is_never_made_up() -> None:
    name = "model.layers.2.mlp.gate.e_score_correction_bias"
    with pytest.raises(CheckpointError, match=f"lacks '{name}'; topk_method 'noaux_tc' needs the router's bias, which is never made up"):
        match(t0(), {key: shape for key, shape in shapes().items() if key != name})
    plain = match(t0(topk_method="greedy"), shapes())
    assert [key for key in plain.skipped if key.endswith("bias")] == [
        f"model.layers.{i}.mlp.gate.e_score_correction_bias" for i in (1, 2, 3)
    ]


# ---------------------------------------------------------------------- F17


def test_a_configuration_that_promises_mtp_without_tensors() -> None:
    found = match(t0(), shapes(num_nextn_predict_layers=0))
    assert found.config == t0(num_nextn_predict_layers=0) and found.missing == ["model.layers.3.*"] and found.skipped == []
    assert found.notices == [
        "num_nextn_predict_layers is 1, the folder holds 0 MTP modules: loaded with 0, so MTP prediction beyond that is not available"
    ]
    two = match(t0(num_nextn_predict_layers=2), shapes())
    assert two.config == t0() and two.missing == ["model.layers.4.*"]


def test_mtp_tensors_that_the_configuration_does_not_want() -> None:
    found = match(t0(num_nextn_predict_layers=0), shapes())
    extra = set(shapes()) - set(shapes(num_nextn_predict_layers=0))
    assert set(found.skipped) == extra and set(found.sources) == set(shapes()) - extra and found.missing == []
    assert "num_nextn_predict_layers is 0, the folder holds 1 MTP module: the rest is ignored" in found.notices


def test_mtp_is_known_by_its_tensors_when_layers_are_cut() -> None:
    found = match(t0(num_hidden_layers=2), shapes())
    assert set(found.skipped) == {name for name in shapes() if name.startswith("model.layers.2.")}
    assert found.sources["model.layers.2.eh_proj.weight"] == "model.layers.3.eh_proj.weight"
    assert found.sources["model.layers.1.mlp.experts.7.up_proj.weight"] == "model.layers.1.mlp.experts.7.up_proj.weight"
    assert found.repeated == {
        "model.layers.3.embed_tokens.weight": "model.embed_tokens.weight",
        "model.layers.3.shared_head.head.weight": "lm_head.weight",
    }


def test_a_trunk_that_swallows_the_mtp_module_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"layer 3 is an MTP module .* set num_hidden_layers to 3 or less"):
        match(t0(num_hidden_layers=4), shapes())


def test_an_mtp_module_with_a_tensor_less_is_not_taken_for_none() -> None:
    for tail in ("eh_proj.weight", "enorm.weight", "self_attn.o_proj.weight"):
        with pytest.raises(CheckpointError, match=f"lacks 'model.layers.3.{tail}'"):
            match(t0(), {name: shape for name, shape in shapes().items() if name != f"model.layers.3.{tail}"})


def test_mtp_copies_are_optional() -> None:
    table = {name: shape for name, shape in shapes().items() if name not in copies(t0())}
    found = match(t0(), table)
    assert (found.repeated, found.skipped, found.missing, found.notices) == ({}, [], [], [])
