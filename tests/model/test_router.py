"""Routing as a table of hand-computed values, and what casts, gradients and negative scores must not do to it."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from rorqual.config import ModelConfig
from rorqual.model.moe import MoE
from rorqual.model.router import Router, route
from rorqual.model.transformer import CausalLM
from tests.tiny import t0


def routing(experts: int, k: int, scale: float, **changes: object) -> ModelConfig:
    return t0(n_routed_experts=experts, num_experts_per_tok=k, routed_scaling_factor=scale, **changes)


def logits(*scores: float) -> torch.Tensor:
    return torch.tensor([[math.log(s / (1 - s)) for s in scores]])


FOUR = (0.9, 0.2, 0.6, 0.5)


@pytest.mark.parametrize(
    ("config", "experts", "weights"),
    [
        (routing(4, 2, 2.446, n_group=1, topk_group=1, norm_topk_prob=False), [0, 2], [2.2014, 1.4676]),
        (routing(4, 2, 2.446, n_group=1, topk_group=1), [0, 2], [1.4676, 0.9784]),
        (routing(4, 1, 2.446, n_group=1, topk_group=1), [0], [2.446]),
        (routing(4, 2, 2.446, n_group=4, topk_group=2), [0, 2], [1.4676, 0.9784]),
    ],
)
def test_gating_shapes(config: ModelConfig, experts: list[int], weights: list[float]) -> None:
    got = route(logits(*FOUR), torch.zeros(4), config)
    assert got.indices.tolist() == [experts]
    assert got.weights[0].tolist() == pytest.approx(weights, abs=1e-4)


def test_group_score_is_the_sum_of_two_and_the_bias_only_chooses() -> None:
    config = routing(6, 2, 2.5, n_group=3, topk_group=1)
    got = route(logits(0.9, 0.1, 0.6, 0.5, 0.8, 0.1), torch.tensor([0, 0, 0, 0.2, 0, 0]), config)
    assert dict(zip(got.indices[0].tolist(), got.weights[0].tolist(), strict=True)) == pytest.approx({2: 1.363636, 3: 1.136364}, abs=1e-5)


def test_v2_rule_takes_the_best_of_a_group_and_softmax_scores() -> None:
    config = routing(6, 2, 16.0, n_group=3, topk_group=1, topk_method="group_limited_greedy", scoring_func="softmax", norm_topk_prob=False)
    values = torch.tensor([[2.0, -1.0, 1.0, 0.9, 0.0, 0.1]])
    got = route(values, None, config)
    assert got.indices.tolist() == [[0, 1]]
    assert got.weights[0].tolist() == pytest.approx((16 * values.softmax(-1))[0, :2].tolist())


def test_greedy_ignores_groups() -> None:
    config = routing(4, 2, 1.0, n_group=2, topk_group=1, topk_method="greedy", scoring_func="softmax", norm_topk_prob=False)
    assert route(torch.tensor([[3.0, 0.0, 2.0, 1.0]]), None, config).indices.tolist() == [[0, 2]]


def test_groups_left_out_cannot_win_against_negative_scores() -> None:
    """Masked with 0 instead of -inf, experts 2 and 3 (s + b = -0.4) would lose to the masked ones."""
    config = routing(4, 2, 1.0, n_group=2, topk_group=1)
    got = route(torch.zeros(1, 4), torch.tensor([-1.0, -1.0, -0.9, -0.9]), config)
    assert sorted(got.indices[0].tolist()) == [2, 3]


@pytest.mark.parametrize("bias", [[34.50, 34.54, 34.58, 34.62], [2.020, 2.021, 2.022, 2.023]])
def test_bias_keeps_its_precision_through_casts(bias: list[float]) -> None:
    router = Router(routing(4, 2, 1.0, n_group=1, topk_group=1))
    with torch.no_grad():
        router.weight.zero_()
        router.e_score_correction_bias.copy_(torch.tensor(bias))
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    for cast in (router, copy.deepcopy(router).to(torch.bfloat16), copy.deepcopy(router).half(), copy.deepcopy(router).bfloat16().float()):
        assert cast.e_score_correction_bias.dtype == torch.float32 and cast.weight.dtype == torch.float32
        assert cast(x.to(torch.bfloat16)).indices.tolist() == [[3, 2]] * 3
        assert torch.equal(cast.e_score_correction_bias, router.e_score_correction_bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert router(x).indices.tolist() == [[3, 2]] * 3


def test_a_whole_model_cast_leaves_router_state_alone() -> None:
    model = CausalLM(t0())
    model.init_weights(0)
    model.to(torch.bfloat16)
    assert {bias.dtype for _, bias in model.router_biases()} == {torch.float32}
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_gradient_reaches_scores_but_not_the_bias() -> None:
    config = routing(8, 2, 2.5)
    values = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    bias = torch.zeros(8, requires_grad=True)
    route(values, bias, config).weights[:, 0].sum().backward()
    assert values.grad is not None and values.grad.abs().sum() > 0
    assert bias.grad is None
    assert "e_score_correction_bias" not in dict(Router(config).named_parameters())


@pytest.mark.parametrize(
    ("config", "scores", "bias", "gates"),
    [
        (routing(4, 2, 2.446, n_group=1, topk_group=1, norm_topk_prob=False), FOUR, (0.0,) * 4, {0: 2.2014, 2: 1.4676}),
        (routing(4, 2, 2.446, n_group=1, topk_group=1), FOUR, (0.0,) * 4, {0: 1.4676, 2: 0.9784}),
        (routing(4, 1, 2.446, n_group=1, topk_group=1), FOUR, (0.0,) * 4, {0: 2.446}),
        (routing(4, 2, 2.446, n_group=4, topk_group=2), FOUR, (0.0,) * 4, {0: 1.4676, 2: 0.9784}),
        (routing(6, 2, 2.5, n_group=3, topk_group=1), (0.9, 0.1, 0.6, 0.5, 0.8, 0.1), (0, 0, 0, 0.2, 0, 0), {2: 1.363636, 3: 1.136364}),
    ],
)
def test_the_same_gates_in_a_batch_and_in_the_output_of_the_block(
    config: ModelConfig, scores: tuple[float, ...], bias: tuple[float, ...], gates: dict[int, float]
) -> None:
    """Every row of the table through dispatch, experts and combine, among other tokens: gates from the table, the shared expert once."""
    moe = MoE(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
        moe.gate.weight.copy_(torch.eye(len(scores), 64))
        moe.gate.e_score_correction_bias.copy_(torch.tensor(bias, dtype=torch.float32))
    u = torch.randn(40, 64, generator=generator)
    u[17, : len(scores)] = logits(*scores)
    with torch.no_grad():
        sent = moe.dispatch(u)
        out = moe.combine(moe.compute(sent), sent, u)[17]
        want = moe.shared_experts(u[17:18])[0]
        for expert, gate in gates.items():
            up = (moe.experts.gate_up_proj.weight[expert] @ u[17]).chunk(2)
            want = want + gate * (moe.experts.down_proj.weight[expert] @ (torch.nn.functional.silu(up[0]) * up[1]))
    torch.testing.assert_close(out, want, rtol=1e-3, atol=1e-3)
