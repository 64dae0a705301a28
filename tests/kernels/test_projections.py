"""The compiled products around attention equal norms and products one by one."""

from __future__ import annotations

import pytest
import torch

from rorqual.kernels import native, projections, reference

pytestmark = pytest.mark.skipif(not native.usable(torch.zeros(1)), reason="the compiled kernels are not usable here")


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize(("n", "m", "a", "c", "r", "q", "w"), [(1, 32, 16, 16, 8, 48, 64), (97, 21, 9, 13, 6, 50, 35)])
def test_inputs_of_attention(n, m, a, c, r, q, w, compressed):
    x = _random(n, m)
    weights = projections.InputWeights(
        _random(m, seed=1), _random(a, m, seed=2) if compressed else None, _random(a, seed=3) if compressed else None,
        _random(q, a if compressed else m, seed=4), _random(c + r, m, seed=5), _random(c, seed=6), _random(w, c, seed=7),
    )  # fmt: skip
    h = reference.rms_norm(x, weights.input_norm, 1e-5)
    latent = h if not compressed else reference.rms_norm(h @ weights.q_a.T, weights.q_norm, 1e-5)
    keys, rope = (h @ weights.kv_a.T).split([c, r], dim=1)
    expected = latent @ weights.q_b.T, reference.rms_norm(keys, weights.kv_norm, 1e-5) @ weights.kv_b.T, rope
    found = projections.attention_inputs(x, weights, 1e-5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=2e-5)
    for one, other in zip(projections.attention_inputs(x[-1:], weights, 1e-5), found, strict=True):
        assert torch.equal(one, other[-1:])


@pytest.mark.parametrize(("n", "k", "o"), [(1, 16, 32), (101, 13, 27)])
def test_a_product_is_added(n, k, o):
    x, weight, out = _random(n, k), _random(o, k, seed=1), _random(n, o, seed=2)
    expected = out + x @ weight.T
    projections.add_product(out, x, weight)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
