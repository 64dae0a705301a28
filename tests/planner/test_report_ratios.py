"""The whole planner on shapes that are not the 671B model's (field cases F01 and F04): training, memory, search, serving, FLOPs."""

from __future__ import annotations

import pytest

from rorqual.config import ModelConfig
from rorqual.planner.estimate import serving_estimate, training_estimate
from rorqual.planner.flops import decode_flops_per_token, train_flops_per_token
from rorqual.planner.hardware import hardware
from rorqual.planner.inventory import inventory
from rorqual.planner.layout import Layout, stage_layers
from rorqual.planner.memory import cache_bytes_per_token
from rorqual.planner.params import count
from rorqual.planner.report import Request, training_plan
from rorqual.planner.serving import plan_serving
from tests.tiny import t0

ODD = {"v_head_dim": 20, "num_attention_heads": 3, "kv_lora_rank": 24, "n_shared_experts": 2, "vocab_size": 259, "first_k_dense_replace": 0}
RATIOS = {
    "odd widths": ODD,
    "no shared expert": {**ODD, "n_shared_experts": 0},
    "trunk without MoE": {**ODD, "first_k_dense_replace": 3},
    "every second layer MoE": {**ODD, "moe_layer_freq": 2},
    "no MTP": {**ODD, "num_nextn_predict_layers": 0},
    "two MTP modules": {**ODD, "num_nextn_predict_layers": 2},
    "no query compression": {**ODD, "q_lora_rank": None},
    "no experts anywhere": {**ODD, "n_routed_experts": 0, "num_nextn_predict_layers": 0},
    "tied": {**ODD, "tie_word_embeddings": True},
}


@pytest.fixture(params=RATIOS.values(), ids=RATIOS.keys())
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return t0(**request.param)


def test_a_plan_of_training(config: ModelConfig) -> None:
    layout = Layout(3, 4, 2 if config.n_routed_experts else 1, "1f1b")
    plan = training_plan(Request("odd", config, hardware("h100"), layout, 1e9, 64, 128))
    own = [t for t in inventory(config) if not any(t.name.startswith(f"model.layers.{n}.") for n in range(3, config.num_blocks))]
    assert plan["parameters_total"] == sum(t.elements for t in own) == count(config).total
    assert plan["gflop_per_token"] == train_flops_per_token(config, 128) / 1e9 and plan["step_seconds"] > 0 and plan["memory"]["fits"]
    assert plan["layers_per_stage"] == [1, 1, 1] == [len(one) for one in stage_layers(config, 3)]


def test_a_plan_of_serving(config: ModelConfig) -> None:
    """32 cached values a layer (24 + 8), in BF16."""
    assert cache_bytes_per_token(config) == 3 * 32 * 2
    plan = plan_serving(config, hardware("a100"), 1, 128)
    assert plan.cache_bytes_per_token == 192 and plan.weight_bytes == 2 * count(config).total and plan.largest.seconds > 0
    assert plan.largest.bound in ("memory", "compute")


def test_estimates_of_this_package(config: ModelConfig) -> None:
    whole = count(config).total + count(config).mtp
    assert training_estimate(config, micro_batch=2, length=64).parts["weights"] == 4 * whole
    assert serving_estimate(config, sequences=1, context=16).parts["cache"] == 16 * (3 + min(1, config.num_nextn_predict_layers)) * 32 * 4
    assert 0 < decode_flops_per_token(config, 1) < decode_flops_per_token(config, 64)
