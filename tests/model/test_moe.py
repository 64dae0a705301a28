"""Routed experts: fused against composed against a loop over tokens; swapped layers; starved experts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rorqual.model.layers import GroupedLinear
from rorqual.model.moe import MoE
from tests.tiny import t0


def made(**changes: object) -> MoE:
    moe = MoE(t0(**changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return moe


def run(moe: MoE, u: torch.Tensor) -> torch.Tensor:
    sent = moe.dispatch(u)
    return moe.combine(moe.compute(sent), sent, u)


def by_token(moe: MoE, u: torch.Tensor) -> torch.Tensor:
    """Equation 12, one token and one expert at a time, in float64."""
    routing = moe.gate(u)
    gate_up, down = moe.experts.gate_up_proj.weight.double(), moe.experts.down_proj.weight.double()
    out = []
    for t, x in enumerate(u.double()):
        y = torch.zeros_like(x)
        for expert, weight in zip(routing.indices[t].tolist(), routing.weights[t].double(), strict=True):
            gate, up = (gate_up[expert] @ x).chunk(2)
            y = y + weight * (down[expert] @ (torch.sigmoid(gate) * gate * up))
        shared = moe.shared_experts
        gate, up = shared.gate_proj.weight.double() @ x, shared.up_proj.weight.double() @ x
        out.append(y + shared.down_proj.weight.double() @ (torch.sigmoid(gate) * gate * up))
    return torch.stack(out)


def gradients(moe: MoE, u: torch.Tensor) -> list[torch.Tensor]:
    moe.zero_grad()
    u = u.clone().requires_grad_()
    run(moe, u).mul(torch.linspace(-1, 1, u.numel()).view_as(u)).sum().backward()
    return [u.grad, *(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in moe.parameters())]


class Scaled(GroupedLinear):
    """A layer whose storage differs, described fully by its three GEMMs: the weight is kept at half its size."""

    def fprop(self, x, offs):
        return 2 * super().fprop(x, offs)

    def dgrad(self, dy, offs):
        return 2 * super().dgrad(dy, offs)

    def wgrad(self, dy, x, offs):
        return 2 * super().wgrad(dy, x, offs)


class Lora(GroupedLinear):
    """A layer with an autograd of its own: a low-rank update beside the weight."""

    def __init__(self, num_groups: int, in_features: int, out_features: int) -> None:
        super().__init__(num_groups, in_features, out_features)
        generator = torch.Generator().manual_seed(7)
        self.down = nn.Parameter(torch.randn(in_features, 4, generator=generator) * 0.1)
        self.up = nn.Parameter(torch.randn(4, out_features, generator=generator) * 0.1)

    def forward(self, x, offs):
        return super().forward(x, offs) + x @ self.down @ self.up


def swap(moe: MoE, kind: type[GroupedLinear]) -> None:
    for name in ("gate_up_proj", "down_proj"):
        old = getattr(moe.experts, name)
        new = kind(old.num_groups, old.in_features, old.out_features)
        with torch.no_grad():
            new.weight.copy_(old.weight)
        setattr(moe.experts, name, new)


def test_against_equation_twelve() -> None:
    moe, u = made(), torch.randn(11, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(run(moe, u).double(), by_token(moe, u), atol=1e-4, rtol=1e-4)


def test_gradients_against_autograd_of_the_loop() -> None:
    moe, u = made(), torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    got = gradients(moe, u)
    moe.zero_grad()
    probe = u.clone().requires_grad_()
    by_token(moe, probe).mul(torch.linspace(-1, 1, u.numel()).view_as(u)).sum().backward()
    want = [probe.grad, *(torch.zeros_like(p) if p.grad is None else p.grad for p in moe.parameters())]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_a_layer_of_other_gemms_goes_through_the_fused_function() -> None:
    plain, u = made(), torch.randn(9, 64, generator=torch.Generator().manual_seed(1))
    swapped = made()
    with torch.no_grad():
        swapped.experts.gate_up_proj.weight.mul_(0.5)
        swapped.experts.down_proj.weight.mul_(0.5)
    swap(swapped, Scaled)
    torch.testing.assert_close(run(swapped, u), run(plain, u), atol=1e-5, rtol=1e-5)
    want, got = gradients(plain, u), gradients(swapped, u)
    torch.testing.assert_close(got[0], want[0], atol=1e-4, rtol=1e-4)
    names = [name for name, _ in swapped.named_parameters()]
    for name, a, b in zip(names, got[1:], want[1:], strict=True):
        torch.testing.assert_close(a, 2 * b if name.startswith("experts.") else b, atol=2e-4, rtol=1e-3)


def test_a_layer_with_its_own_autograd_is_composed_unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    moe, u = made(), torch.randn(9, 64, generator=torch.Generator().manual_seed(1))
    fused, fused_grads = run(moe, u), gradients(moe, u)
    swap(moe, Lora)
    with torch.no_grad():
        for layer in (moe.experts.gate_up_proj, moe.experts.down_proj):
            layer.up.zero_()
    monkeypatch.setattr(
        "rorqual.model.moe.ExpertsFunction.apply", lambda *_: pytest.fail("the fused function ignores the layer's own autograd")
    )
    torch.testing.assert_close(run(moe, u), fused, atol=1e-5, rtol=1e-5)
    named = dict(zip(["u", *(n for n, _ in moe.named_parameters())], gradients(moe, u), strict=True))
    plain = dict(zip(["u", *(n for n, _ in made().named_parameters())], fused_grads, strict=True))
    for name, grad in plain.items():
        torch.testing.assert_close(named[name], grad, atol=1e-4, rtol=1e-4)
    assert named["experts.down_proj.up"].abs().sum() > 0


@pytest.mark.parametrize("tokens", [1, 2, 0])
def test_starved_experts_get_zero_gradients(tokens: int) -> None:
    """Bias +10 on two experts starves the other six; memory is dirtied with NaN first."""
    moe = made(n_group=1, topk_group=1)
    with torch.no_grad():
        moe.gate.e_score_correction_bias[:2] = 10.0
    dirty = [torch.full((8, 64, 64), float("nan")) for _ in range(20)]
    del dirty
    grads = gradients(moe, torch.randn(tokens, 64, generator=torch.Generator().manual_seed(1)))
    assert all(torch.isfinite(g).all() for g in grads)
    assert moe.experts.gate_up_proj.weight.grad[2:].abs().max() == 0
    assert moe.experts.down_proj.weight.grad[2:].abs().max() == 0
    if tokens:
        assert moe.experts.down_proj.weight.grad[:2].abs().min() >= 0 and moe.experts.down_proj.weight.grad[0].abs().sum() > 0


def test_shared_experts_add_unscaled() -> None:
    moe, u = made(), torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        moe.experts.down_proj.weight.zero_()
    torch.testing.assert_close(run(moe, u), moe.shared_experts(u))


def test_without_shared_experts() -> None:
    assert made(n_shared_experts=0).shared_experts is None
    assert run(made(n_shared_experts=0), torch.randn(3, 64)).shape == (3, 64)
    assert made(n_shared_experts=2).shared_experts.gate_proj.weight.shape == (64, 64)
