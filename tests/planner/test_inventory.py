"""The official layout: the released files to the byte, plain layouts, odd shapes."""

from __future__ import annotations

import pytest

from rorqual.config import ABSENT, ModelConfig
from rorqual.errors import ConfigError
from rorqual.planner.inventory import Tensor, inventory
from rorqual.planner.params import count
from rorqual.presets import FP8_QUANTIZATION, PRESETS, member
from tests.planner.configurations import KIMI_K2, MOONLIGHT, V2, V2_LITE, V3
from tests.tiny import t0


def test_released_671b_files() -> None:
    tensors = inventory(V3.with_(quantization_config=FP8_QUANTIZATION))
    assert len(tensors) == len({t.name for t in tensors}) == 91_991
    assert sum(t.elements for t in tensors) == 684_531_386_000
    assert sum(t.bytes for t in tensors) == 688_574_839_360
    assert sum(t.elements for t in tensors if t.name.endswith("_scale_inv")) == 41_540_496
    table = {t.name: t for t in tensors}
    for name, shape, dtype in (
        ("model.layers.0.self_attn.q_b_proj.weight_scale_inv", (192, 12), "F32"),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", (576, 7168), "F8_E4M3"),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv", (5, 56), "F32"),
        ("model.layers.2.mlp.down_proj.weight", (7168, 18432), "F8_E4M3"),
        ("model.layers.3.mlp.gate.weight", (256, 7168), "BF16"),
        ("model.layers.3.mlp.gate.e_score_correction_bias", (256,), "F32"),
        ("model.layers.61.mlp.experts.255.up_proj.weight_scale_inv", (16, 56), "F32"),
        ("model.layers.61.eh_proj.weight", (7168, 14336), "BF16"),
        ("model.layers.61.shared_head.head.weight", (129280, 7168), "BF16"),
    ):
        assert table[name] == Tensor(name, shape, dtype)


@pytest.mark.parametrize("name", ["v3_671b", *(pytest.param(name, marks=pytest.mark.slow) for name in ("v3_0324", "v3_1", "r1"))])
def test_released_files_of_the_v3_shape_are_alike(name: str) -> None:
    tensors = inventory(member(name).released)
    assert (len(tensors), sum(t.elements for t in tensors), sum(t.bytes for t in tensors)) == (91_991, 684_531_386_000, 688_574_839_360)


def test_released_kimi_k2_files() -> None:
    tensors = inventory(member("kimi_k2").released)
    per_layer, experts = (
        2 + 2 + 5 * 2,
        1 + 1 + (384 + 1) * 3 * 2,
    )  # norms, latent norms, five projections; router, bias, experts: each with scales
    assert len(tensors) == 3 + 61 * per_layer + 3 * 2 + 60 * experts == 139_583
    scales = sum(t.elements for t in tensors if t.name.endswith("_scale_inv"))
    assert sum(t.elements for t in tensors) - scales == 1_026_408_232_448
    assert {t.dtype for t in tensors} == {"BF16", "F32", "F8_E4M3"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in ("v3_0324", "r1") else []) for name in sorted(PRESETS)]
)
def test_fp8_is_half_of_bf16_but_for_what_stays_plain(name: str) -> None:
    config = member(name).config
    plain, quantised = inventory(config), inventory(config.with_(quantization_config=FP8_QUANTIZATION))
    weights = sum(t.elements for t in quantised if t.dtype == "F8_E4M3")
    scales = sum(t.bytes for t in quantised if t.name.endswith("_scale_inv"))
    assert sum(t.bytes for t in plain) - sum(t.bytes for t in quantised) == weights - scales
    kept = [t.name for t in quantised if t.dtype == "BF16"]
    assert all("norm" in n or n.endswith(("embed_tokens.weight", "head.weight", "eh_proj.weight", "gate.weight")) for n in kept)


def test_plain_layouts() -> None:
    plain = inventory(V3)
    copies = 2 * 926_679_040
    assert sum(t.elements for t in plain) == 671_026_419_200 + 11_610_068_224 + copies
    biases = 59 * 256
    assert sum(t.bytes for t in plain) == 2 * sum(t.elements for t in plain) + 2 * biases
    full = inventory(t0(), "F32")
    assert {t.dtype for t in full} == {"F32"}
    assert sum(t.bytes for t in full) == 4 * sum(t.elements for t in full)


@pytest.mark.parametrize("config", [V2, V2_LITE, MOONLIGHT, KIMI_K2], ids=["v2", "v2_lite", "moonlight", "kimi_k2"])
def test_members_without_mtp_hold_exactly_their_total(config: ModelConfig) -> None:
    tensors = inventory(config)
    assert sum(t.elements for t in tensors) == count(config).total
    assert any(t.name.endswith("e_score_correction_bias") for t in tensors) == (config.topk_method == "noaux_tc")
    assert any(".q_proj." in t.name for t in tensors) == (config.q_lora_rank is None)


def test_names_of_the_reader_and_writer() -> None:
    from rorqual.checkpoint.names import copies, expected

    for config in (
        t0(),
        t0(q_lora_rank=None, tie_word_embeddings=True, num_nextn_predict_layers=2),
        t0(n_shared_experts=0),
        t0(n_routed_experts=0),
    ):
        shapes = dict(expected(config))
        shapes |= {copy: shapes[original] for copy, original in copies(config).items()}
        assert {t.name: t.shape for t in inventory(config)} == shapes


def test_absent_parts_leave_no_tensor() -> None:
    names = [t.name for t in inventory(t0(n_shared_experts=0, num_nextn_predict_layers=0, tie_word_embeddings=True))]
    assert not [n for n in names if "shared" in n or "layers.3" in n or n == "lm_head.weight"]


def test_ragged_blocks_round_up() -> None:
    table = {t.name: t for t in inventory(t0(quantization_config={**FP8_QUANTIZATION, "weight_block_size": [32, 48]}))}
    assert table["model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv"].shape == (2, 2)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"quant_method": "compressed-tensors"}, "'compressed-tensors'"),
        ({"quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [128, 128]}, "'e5m2'"),
        ({"quant_method": "fp8", "fmt": "e4m3"}, r"weight_block_size \(None\)"),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, r"weight_block_size \(\[128, 0\]\)"),
    ],
)
def test_other_quantisations_are_refused(raw: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        inventory(t0(quantization_config=raw))


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="q_lora_rank is absent"):
        inventory(t0(q_lora_rank=ABSENT))
    with pytest.raises(ConfigError, match="'F8_E4M3'"):
        inventory(t0(), "F8_E4M3")
    with pytest.raises(ConfigError, match=r"n_routed_experts \(1000000000\)"):
        inventory(t0(n_routed_experts=10**9))
