"""AdamW against torch's own and against a float64 reference; clipping; starved experts; state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rorqual.kernels import ops
from rorqual.train.hyperparams import OptimizerConfig
from rorqual.train.optim import AdamW, adamw_foreach, global_norm

SHAPES = {"embed.weight": (50, 12), "mlp.experts.gate_up_proj.weight": (4, 16, 12), "input_layernorm.weight": (12,), "head.weight": (33, 7)}


def parameters(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=draw).to(dtype)) for name, shape in SHAPES.items()}


def set_gradients(params: dict[str, nn.Parameter], step: int, scale: float = 1.0) -> None:
    draw = torch.Generator().manual_seed(1000 + step)
    for p in params.values():
        p.grad = (torch.randn(p.shape, generator=draw) * scale).to(p.dtype)


@pytest.mark.parametrize("decay_norms", [False, True])
def test_equals_torch(decay_norms: bool) -> None:
    config = OptimizerConfig(decay_norms=decay_norms)
    ours, theirs = parameters(), parameters()
    undecayed = [] if decay_norms else [theirs["input_layernorm.weight"]]
    decayed = [p for p in theirs.values() if all(p is not q for q in undecayed)]
    reference = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": undecayed, "weight_decay": 0.0}], lr=1.0, betas=(0.9, 0.95), eps=1e-8
    )
    adamw = AdamW(ours.items(), config)
    for step in range(12):
        lr = 0.01 * (step + 1)
        scale = 0.01 if step % 3 else 5.0  # both sides of the clip norm
        set_gradients(ours, step, scale)
        set_gradients(theirs, step, scale)
        norm = adamw.gradient_norm()
        assert norm == pytest.approx(torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0).item(), rel=1e-6)
        for group in reference.param_groups:
            group["lr"] = lr
        reference.step()
        adamw.step(lr, norm)
    for name, p in ours.items():
        torch.testing.assert_close(p, theirs[name], rtol=1e-6, atol=1e-6)


def test_bf16_moments_against_float64() -> None:
    """Weights of the BF16-moment optimiser follow the formula computed in float64 with moments rounded to BF16 once a step."""
    config = OptimizerConfig(moments="bf16", clip_norm=1e9)
    params = parameters()
    adamw = AdamW(params.items(), config)
    w = {name: p.detach().double().clone() for name, p in params.items()}
    m = {name: torch.zeros_like(x) for name, x in w.items()}
    v = {name: torch.zeros_like(x) for name, x in w.items()}
    for step in range(1, 9):
        set_gradients(params, step)
        for name, p in params.items():
            g = p.grad.double()  # type: ignore[union-attr]
            new_m, new_v = 0.9 * m[name] + 0.1 * g, 0.95 * v[name] + 0.05 * g * g
            decay = 0.0 if "norm" in name else 0.1
            w[name] = w[name] * (1 - 0.01 * decay) - 0.01 * (new_m / (1 - 0.9**step)) / ((new_v / (1 - 0.95**step)).sqrt() + 1e-8)
            m[name], v[name] = new_m.bfloat16().double(), new_v.bfloat16().double()
        adamw.step(0.01, adamw.gradient_norm())
    for name, p in params.items():
        assert adamw.exp_avg[name].dtype == adamw.exp_avg_sq[name].dtype == torch.bfloat16
        # a value half way between two BF16 numbers may round to either: one moment in a few hundred, 2^-8 relative
        error = (p.double() - w[name]).abs()
        assert error.median() < 1e-7 and error.max() < 3e-4
        fp32 = AdamW(parameters().items(), OptimizerConfig())
        assert fp32.exp_avg[name].dtype == torch.float32


def test_norm_is_float_exact_and_shows_non_finite() -> None:
    assert global_norm([torch.full((3, 3), 2.0), torch.ones(13)]) == 7.0
    assert math.isinf(global_norm([torch.ones(2), torch.tensor([1.0, math.inf])]))
    assert math.isnan(global_norm([torch.ones(2), torch.tensor([1.0, math.nan])]))
    assert global_norm([]) == global_norm([None]) == 0.0
    assert global_norm([torch.ones(3), None]) == global_norm([torch.ones(3), torch.zeros(5)]) == 3**0.5


def test_missing_gradient_is_a_zero_gradient() -> None:
    """A starved expert decays and keeps its momentum alike whether its gradient is absent or zero."""
    absent, zero = parameters(), parameters()
    first, second = AdamW(absent.items(), OptimizerConfig()), AdamW(zero.items(), OptimizerConfig())
    for step in range(3):
        set_gradients(absent, step)
        set_gradients(zero, step)
        if step:
            absent["head.weight"].grad = None
            zero["head.weight"].grad.zero_()  # type: ignore[union-attr]
        first.step(0.01, first.gradient_norm())
        second.step(0.01, second.gradient_norm())
    assert all(torch.equal(absent[name], zero[name]) for name in absent)
    assert not torch.equal(absent["head.weight"], parameters()["head.weight"])


def test_bf16_parameters_have_an_fp32_master() -> None:
    """A hundred updates each below BF16's resolution add up in the master; gradients of micro-batches are summed in FP32."""
    p = {"head.weight": nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))}
    adamw = AdamW(p.items(), OptimizerConfig(weight_decay=0.0, clip_norm=1e9))
    for _ in range(100):
        for _ in range(2):
            p["head.weight"].grad = torch.ones(4, 4, dtype=torch.bfloat16)
            adamw.accumulate()
        assert p["head.weight"].grad is None
        assert adamw.gradients()["head.weight"].dtype == torch.float32 and adamw.gradients()["head.weight"][0, 0] == 2.0
        adamw.step(1e-3, adamw.gradient_norm())
        adamw.zero_grad()
    assert adamw.master["head.weight"][0, 0].item() == pytest.approx(0.9, abs=1e-5)
    assert torch.equal(p["head.weight"], adamw.master["head.weight"].bfloat16())


@pytest.mark.parametrize("moments", ["fp32", "bf16"])
def test_state_round_trip_continues_to_the_bit(moments: str) -> None:
    config = OptimizerConfig(moments=moments)  # type: ignore[arg-type]
    straight, halted = parameters(), parameters()
    a, b = AdamW(straight.items(), config), AdamW(halted.items(), config)
    for step in range(3):
        for params, adamw in ((straight, a), (halted, b)):
            set_gradients(params, step)
            adamw.step(0.01, adamw.gradient_norm())
    resumed = {name: nn.Parameter(p.detach().clone()) for name, p in halted.items()}
    c = AdamW(resumed.items(), config)
    for name, tensor in c.state().items():
        tensor.copy_(b.state()[name])
    c.updates = b.updates
    for params, adamw in ((straight, a), (resumed, c)):
        set_gradients(params, 3)
        adamw.step(0.01, adamw.gradient_norm())
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


@pytest.mark.parametrize("moment", [torch.float32, torch.bfloat16])
def test_foreach_form_is_the_kernel_s_formula(moment: torch.dtype) -> None:
    constants = {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "step": 3, "grad_scale": 0.5}
    draw = torch.Generator().manual_seed(3)

    def tensors() -> list[list[torch.Tensor]]:
        draw.manual_seed(3)
        return [[torch.randn(s, generator=draw), torch.randn(s, generator=draw), torch.randn(s, generator=draw).to(moment),
                 torch.rand(s, generator=draw).to(moment)] for s in ((5, 7), (40,))]  # fmt: skip

    single, many = tensors(), tensors()
    for row in single:
        ops.adamw(*row, **constants)
    adamw_foreach(*(list(column) for column in zip(*many, strict=True)), **constants)  # type: ignore[arg-type]
    for ours, theirs in zip(single, many, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6 if a.dtype == torch.float32 else 8e-3, atol=1e-6)


@pytest.mark.gpu
def test_gpu_equals_cpu() -> None:
    config = OptimizerConfig(moments="bf16")
    host = parameters()
    device = {name: nn.Parameter(p.detach().cuda()) for name, p in parameters().items()}
    a, b = AdamW(host.items(), config), AdamW(device.items(), config)
    for step in range(5):
        set_gradients(host, step)
        for name, p in device.items():
            p.grad = host[name].grad.cuda()  # type: ignore[union-attr]
        assert a.gradient_norm() == pytest.approx(b.gradient_norm(), rel=1e-6)
        a.step(0.01, a.gradient_norm())
        b.step(0.01, b.gradient_norm())
    for name, p in host.items():
        torch.testing.assert_close(p, device[name].cpu(), rtol=1e-4, atol=1e-4)
