"""The compiled feed-forward equals the plain one, for dense blocks and for experts, whoever shares the batch."""

from __future__ import annotations

import pytest
import torch

from rorqual.kernels import ffn, native, reference

pytestmark = pytest.mark.skipif(not native.usable(torch.zeros(1)), reason="the compiled kernels are not usable here")


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


@pytest.mark.parametrize(("n", "m", "f"), [(1, 32, 16), (49, 24, 20), (100, 7, 3)])
def test_dense(n, m, f):
    x, gate, up, down, out = _random(n, m), _random(f, m, seed=1), _random(f, m, seed=2), _random(m, f, seed=3), _random(n, m, seed=4)
    expected = out + reference.swiglu(x @ gate.T, x @ up.T) @ down.T
    ffn.add_feed_forward(out, x, gate, up, down)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("n", "m", "f", "chosen"), [(1, 32, 16, 2), (150, 24, 20, 3), (60, 7, 3, 1)])
def test_experts(n, m, f, chosen):
    x, gate_up, down = _random(n, m), _random(5, 2 * f, m, seed=1), _random(5, m, f, seed=2)
    indices = torch.rand(n, 4, generator=torch.Generator().manual_seed(3)).topk(chosen).indices  # the fifth gets nothing
    weights, out = _random(n, chosen, seed=4), _random(n, m, seed=5)
    expected = out.clone()
    for token in range(n):
        for expert, weight in zip(indices[token].tolist(), weights[token], strict=True):
            gate, up = (gate_up[expert] @ x[token]).chunk(2)
            expected[token] += weight * (down[expert] @ reference.swiglu(gate, up))
    alone = out[:1].clone()
    ffn.add_experts(out, x, gate_up, down, indices, weights)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    ffn.add_experts(alone, x[:1], gate_up, down, indices[:1], weights[:1])
    assert torch.equal(alone, out[:1])


def test_threads_change_nothing():
    x, gate_up, down = _random(130, 32), _random(4, 32, 32, seed=1), _random(4, 32, 16, seed=2)
    indices, weights = torch.rand(130, 4, generator=torch.Generator().manual_seed(3)).topk(2).indices, _random(130, 2, seed=4)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(torch.zeros(130, 32))
            ffn.add_experts(found[-1], x, gate_up, down, indices, weights)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
