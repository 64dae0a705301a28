"""The plain operations on rows: the model's own results, a row by itself, no look at a value on the host."""

from __future__ import annotations

import pytest
import torch

from rorqual.kernels import reference, rows


def _numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_sorting_and_experts_are_those_of_the_model() -> None:
    chosen, x = torch.tensor([[3, 0], [0, 2], [3, 2]]), _numbers(3, 5)
    weight, gates = _numbers(4, 6, 5, seed=1), _numbers(3, 2, seed=2)
    order = rows.sort_by_expert(chosen, 4)
    source, slots, ends = reference.sort_by_expert(chosen, 4)
    assert torch.equal(order.source, source) and torch.equal(order.slots, slots) and order.ends.tolist() == ends.tolist() == [2, 2, 4, 6]
    made = rows.expert_linear(x, weight, order.source, order.ends)
    torch.testing.assert_close(made, reference.grouped_fprop(x[source], weight, ends))
    torch.testing.assert_close(rows.combine(x, made[:, :5], gates, slots), x + reference.combine_rows(made[:, :5], gates, slots, source))


def test_products_and_norms_are_those_of_the_model() -> None:
    x, weight, scale = _numbers(3, 8), _numbers(5, 8, seed=1), _numbers(8, seed=2)
    torch.testing.assert_close(rows.linear(x, weight), x @ weight.t())
    assert torch.equal(rows.rms_norm(x, scale, 1e-6), reference.rms_norm(x, scale, 1e-6))
    head = _numbers(2, 5, 4, seed=3)
    got = rows.head_linear(x.view(3, 2, 4), head)
    torch.testing.assert_close(got[:, 1], x.view(3, 2, 4)[:, 1] @ head[1].t())


def test_attention_sees_the_rows_own_entries_alone() -> None:
    """Two entries with scores ln 1 and ln 3: a quarter and three quarters; NaN behind the position."""
    cache = torch.full((2, 2, 3), float("nan"))
    cache[1] = torch.tensor([[4.0, 0.0, 0.0], [8.0, 0.0, float(torch.tensor(3.0).log())]])
    got = rows.latent_attention(torch.tensor([[[0.0, 0.0, 1.0]]]), cache, torch.tensor([[1, 0]]), torch.tensor([1]), 1.0, 2)
    torch.testing.assert_close(got, torch.tensor([[[7.0, 0.0]]]))


@pytest.mark.slow  # the first tensor without values costs seconds of imports
def test_nothing_waits_for_the_device() -> None:
    """Tensors without values: any look at one, and any tensor of another device, would raise."""
    x, chosen = torch.empty(3, 8, device="meta"), torch.empty(3, 2, dtype=torch.int64, device="meta")
    order = rows.sort_by_expert(chosen, 4)
    made = rows.expert_linear(x, torch.empty(4, 8, 8, device="meta"), order.source, order.ends)
    assert rows.combine(x, made, torch.empty(3, 2, device="meta"), order.slots).device.type == "meta"
    tables, cache = torch.empty(3, 2, dtype=torch.int64, device="meta"), torch.empty(4, 4, 6, device="meta")
    q = torch.empty(3, 2, 6, device="meta")
    assert rows.latent_attention(q, cache, tables, torch.empty(3, dtype=torch.int64, device="meta"), 1.0, 4).shape == (3, 2, 4)
