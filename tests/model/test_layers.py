"""GroupedLinear's three GEMMs and its autograd; Linear's dense weight; the norm."""

from __future__ import annotations

import pytest
import torch

from rorqual.model.layers import DenseMLP, GroupedLinear, Linear, RMSNorm
from tests.model.reference import rms


def grouped() -> tuple[GroupedLinear, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    layer = GroupedLinear(3, 5, 7)
    with torch.no_grad():
        layer.weight.normal_(generator=generator)
    return layer, torch.randn(6, 5, generator=generator), torch.tensor([4, 4, 6], dtype=torch.int32)


def test_the_three_gemms() -> None:
    layer, x, offs = grouped()
    dy = torch.randn(6, 7, generator=torch.Generator().manual_seed(1))
    expert = [0, 0, 0, 0, 2, 2]
    torch.testing.assert_close(layer.fprop(x, offs), torch.stack([layer.weight[e] @ row for e, row in zip(expert, x, strict=True)]))
    torch.testing.assert_close(layer.dgrad(dy, offs), torch.stack([layer.weight[e].T @ row for e, row in zip(expert, dy, strict=True)]))
    wgrad = layer.wgrad(dy, x, offs)
    torch.testing.assert_close(wgrad[0], dy[:4].T @ x[:4])
    torch.testing.assert_close(wgrad[2], dy[4:].T @ x[4:])
    assert wgrad[1].abs().max() == 0


def test_forward_joins_them_to_autograd() -> None:
    layer, x, offs = grouped()
    x = x.requires_grad_()
    layer(x, offs).square().sum().backward()
    probe_x, probe_w = x.detach().clone().requires_grad_(), layer.weight.detach().clone().requires_grad_()
    torch.cat([probe_x[:4] @ probe_w[0].T, probe_x[4:] @ probe_w[2].T]).square().sum().backward()
    torch.testing.assert_close(x.grad, probe_x.grad)
    torch.testing.assert_close(layer.weight.grad, probe_w.grad)


def test_summed_output_gives_a_gradient_of_stride_zero() -> None:
    layer, x, offs = grouped()
    layer(x, offs).sum().backward()
    torch.testing.assert_close(layer.weight.grad[0], x[:4].sum(0).expand(7, 5))


@pytest.mark.parametrize("width", [3, 16, 100])
def test_norm(width: int) -> None:
    norm = RMSNorm(width, 1e-6)
    x = torch.randn(4, 2 * width, generator=torch.Generator().manual_seed(0))[:, :width]
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 1.5, width))
    torch.testing.assert_close(norm(x).double(), rms(x.double(), norm.weight.double(), 1e-6), atol=1e-6, rtol=1e-5)


def test_linear_has_no_bias_and_shows_its_weight() -> None:
    layer = Linear(3, 2)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert layer.dense_weight() is layer.weight


def test_dense_mlp_is_swiglu() -> None:
    mlp = DenseMLP(4, 6)
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.shape[0]))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    gate, up = x @ mlp.gate_proj.weight.T, x @ mlp.up_proj.weight.T
    torch.testing.assert_close(mlp(x), (gate / (1 + torch.exp(-gate)) * up) @ mlp.down_proj.weight.T, atol=1e-5, rtol=1e-5)
