"""Parameter counts against the published totals, and against a sum over the layout for shapes of other ratios."""

from __future__ import annotations

import pytest

from rorqual.config import ABSENT, ModelConfig
from rorqual.errors import ConfigError
from rorqual.planner.inventory import inventory
from rorqual.planner.params import cache_schemes, cache_values_per_token, count
from tests.planner.configurations import KIMI_K2, MOONLIGHT, V2, V2_LITE, V3
from tests.tiny import t0


def test_671b_to_the_last_parameter() -> None:
    parameters = count(V3)
    assert parameters.total == 671_026_419_200
    assert parameters.active == 37_552_297_472
    assert parameters.active_without_embedding == 36_625_618_432
    assert parameters.active_without_embedding_and_head == 35_698_939_392
    assert parameters.mtp == 11_610_068_224
    assert parameters.attention == 187_107_328
    assert parameters.dense_ffn == 396_361_728
    assert parameters.expert == 44_040_192
    assert parameters.router == 1_835_264
    assert parameters.embedding == parameters.head == 926_679_040


@pytest.mark.parametrize(
    ("config", "total", "active", "without_embedding"),
    [
        (V2, 235_741_434_880, 21_375_800_320, 20_851_512_320),
        (V2_LITE, 15_706_484_224, 2_661_150_208, 2_451_435_008),
        (MOONLIGHT, 15_960_110_208, 2_914_776_192, 2_579_231_872),
        (KIMI_K2, 1_026_408_232_448, 32_861_500_928, 31_687_095_808),
    ],
    ids=["v2", "v2_lite", "moonlight", "kimi_k2"],
)
def test_the_family(config: ModelConfig, total: int, active: int, without_embedding: int) -> None:
    parameters = count(config)
    assert (parameters.total, parameters.active, parameters.active_without_embedding) == (total, active, without_embedding)
    assert parameters.mtp == parameters.mtp_matmul == 0


OTHER_RATIOS = {
    "t0": t0(),
    "no query compression": t0(q_lora_rank=None),
    "three heads of width 20": t0(num_attention_heads=3, v_head_dim=20, kv_lora_rank=24),
    "two shared experts": t0(n_shared_experts=2, vocab_size=259),
    "no shared expert": t0(n_shared_experts=0),
    "all MoE": t0(first_k_dense_replace=0),
    "trunk without MoE": t0(first_k_dense_replace=3),
    "every second layer MoE": t0(first_k_dense_replace=0, moe_layer_freq=2),
    "no experts at all": t0(n_routed_experts=0),
    "no MTP": t0(num_nextn_predict_layers=0),
    "two MTP modules": t0(num_nextn_predict_layers=2),
    "tied": t0(tie_word_embeddings=True),
    "V2 gates": t0(model_type="deepseek_v2", topk_method="group_limited_greedy", scoring_func="softmax"),
}


@pytest.mark.parametrize("config", OTHER_RATIOS.values(), ids=OTHER_RATIOS.keys())
def test_totals_equal_the_sum_over_the_layout(config: ModelConfig) -> None:
    parameters, tensors = count(config), inventory(config)
    layers = range(config.num_hidden_layers, config.num_blocks)
    own = [t for t in tensors if any(t.name.startswith(f"model.layers.{layer}.") for layer in layers)]
    copies = [t for t in own if t.name.endswith(("embed_tokens.weight", "shared_head.head.weight"))]
    assert parameters.mtp == sum(t.elements for t in own) - sum(t.elements for t in copies)
    assert parameters.total == sum(t.elements for t in tensors) - sum(t.elements for t in own)


@pytest.mark.parametrize("config", OTHER_RATIOS.values(), ids=OTHER_RATIOS.keys())
def test_totals_equal_the_models_state_dict(config: ModelConfig) -> None:
    torch = pytest.importorskip("torch")
    from rorqual.model.transformer import CausalLM

    with torch.device("meta"):
        state = CausalLM(config).state_dict()
    parameters = count(config)
    assert sum(tensor.numel() for tensor in state.values()) == parameters.total + parameters.mtp


def test_active_and_matmul_differ_by_norms_and_biases() -> None:
    parameters = count(V3)
    norms = 61 * (2 * 7168 + 1536 + 512) + 7168
    assert parameters.active_without_embedding - parameters.matmul == norms + 58 * 256


def test_tied_embedding_counts_once_but_still_multiplies() -> None:
    tied, untied = count(t0(tie_word_embeddings=True)), count(t0())
    assert untied.total - tied.total == 256 * 64
    assert tied.matmul == untied.matmul
    assert tied.active_without_embedding == untied.active_without_embedding


def test_cache_values() -> None:
    assert cache_values_per_token(V3) * 2 == 70_272
    assert cache_values_per_token(V3, mtp=True) == 62 * 576
    assert cache_values_per_token(t0()) == 3 * 40
    assert cache_values_per_token(t0(kv_lora_rank=24), mtp=True) == 4 * 32


def test_unknown_query_compression_is_refused() -> None:
    with pytest.raises(ConfigError, match="q_lora_rank is absent"):
        count(t0(q_lora_rank=ABSENT))


def test_no_query_compression_however_it_is_written() -> None:
    """Field case F01: null and 0 are the same model, 16,928 attention parameters a layer for T0; absent is not guessed (above)."""
    raw = t0().to_hf()
    null, zero = (ModelConfig.from_hf({**raw, "q_lora_rank": value}) for value in (None, 0))
    assert count(null) == count(zero) and count(null).attention == 16_928 == 64 * 96 + 64 * 40 + 32 + 32 * 128 + 64 * 64
    absent = ModelConfig.from_hf({name: value for name, value in raw.items() if name != "q_lora_rank"})
    with pytest.raises(ConfigError, match="q_lora_rank is absent"):
        count(absent)


def test_caches_of_other_attention_by_hand() -> None:
    """Spec table of the 671B shape: ratios 56.9, 71.1, 3.56 and 0.44 to MLA's; MLA is grouped attention with 2.25 groups."""
    found = cache_schemes(V3)
    assert found == {"mha": 1_998_848, "naive_mla": 2_498_560, "gqa_8": 124_928, "mqa": 15_616, "mla": 35_136}
    assert [round(found[name] / found["mla"], 2) for name in ("mha", "naive_mla", "gqa_8", "mqa")] == [56.89, 71.11, 3.56, 0.44]
    assert found["mla"] / found["mqa"] == 2.25
