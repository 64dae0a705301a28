"""Counts, the bias rule and the sequence-wise loss, each against its formula written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rorqual.model.balance import SequenceWeights, load_counts, max_violation, sequence_balance_loss, update_bias


def written_out(scores: torch.Tensor, k: int, sequences: list[list[int]], weights: list[float]) -> float:
    """Equations 17-20 in float64, by loops; `sequences` lists the token numbers of each."""
    total = 0.0
    for tokens, weight in zip(sequences, weights, strict=True):
        experts, length = scores.shape[1], len(tokens)
        f, p = [0.0] * experts, [0.0] * experts
        for t in tokens:
            row = scores[t].double()
            for i in row.topk(k).indices.tolist():
                f[i] += experts / (k * length)
            for i in range(experts):
                p[i] += float(row[i] / row.sum()) / length
        total += weight * sum(a * b for a, b in zip(f, p, strict=True))
    return total


@given(st.integers(0, 2**31), st.sampled_from([(4, 2), (8, 3)]))
def test_unequal_sequences_and_padding(seed: int, shape: tuple[int, int]) -> None:
    experts, k = shape
    scores = torch.rand(14, experts, generator=torch.Generator().manual_seed(seed)) + 0.01
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, -1], [2, 2, 2, 2, 2, -1, -1]])
    weights = torch.tensor([3 / 9, 2 / 9, 4 / 9])
    got = sequence_balance_loss(scores, k, SequenceWeights(ids, weights, False))
    want = written_out(scores, k, [[0, 1, 2], [3, 4, 5], [7, 8, 9, 10, 11]], [3 / 9, 2 / 9, 4 / 9])
    assert float(got) == pytest.approx(want, rel=1e-5)


def test_full_rows_take_the_same_value_on_both_paths() -> None:
    scores = torch.rand(12, 8, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(3).unsqueeze(1).expand(3, 4)
    weights = torch.full((3,), 1 / 3)
    a, b = (sequence_balance_loss(scores, 2, SequenceWeights(ids, weights, rows)) for rows in (True, False))
    assert float(a) == pytest.approx(float(b), rel=1e-6)
    assert float(a) == pytest.approx(written_out(scores, 2, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]], [1 / 3] * 3), rel=1e-5)


def test_a_uniform_router_gives_one() -> None:
    """Each expert chosen equally often with equal scores: sum f_i P_i = 1."""
    scores = torch.eye(4)[:, [0, 1, 2, 3]] * 1e-4 + 0.5
    loss = sequence_balance_loss(scores, 1, SequenceWeights(torch.zeros(1, 4, dtype=torch.int64), torch.ones(1), True))
    assert float(loss) == pytest.approx(1.0, abs=1e-4)


def test_the_indicator_has_no_gradient() -> None:
    scores = torch.rand(6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    sequence_balance_loss(scores, 2, SequenceWeights(torch.zeros(1, 6, dtype=torch.int64), torch.ones(1), True)).backward()
    rows = scores.detach()
    hits = torch.zeros(6, 4).scatter_(1, rows.topk(2).indices, 1.0).mean(0) * 4 / 2
    probe = rows.clone().requires_grad_()
    ((probe / probe.sum(-1, keepdim=True)).mean(0) * hits).sum().backward()
    torch.testing.assert_close(scores.grad, probe.grad)


def test_bias_moves_once_on_the_whole_batch() -> None:
    """Micro-batch counts [3, 1] and [1, 7]: the sum [4, 8] decides; moving per micro-batch would cancel to [0, 0]."""
    bias = torch.zeros(2)
    update_bias(bias, torch.tensor([3, 1]) + torch.tensor([1, 7]), 0.1)
    assert bias.tolist() == pytest.approx([0.1, -0.1])


def test_counts_are_exact_where_sixteen_bits_are_not() -> None:
    counts = load_counts(torch.zeros(40_840, 1, dtype=torch.int64), 2, None)
    assert counts.dtype == torch.int64 and counts.tolist() == [40_840, 0]
    bias = torch.full((2,), 0.5)
    for _ in range(1000):
        update_bias(bias, torch.tensor([0, 2]), 0.001)
    assert bias.tolist() == pytest.approx([1.5, -0.5], abs=1e-4)


def test_padding_is_not_counted() -> None:
    indices = torch.tensor([[0], [0], [1], [0], [0]])
    assert load_counts(indices, 2, torch.tensor([True, True, True, False, False])).tolist() == [2, 1]


def test_exact_mean_load_moves_nothing() -> None:
    bias = torch.zeros(3)
    update_bias(bias, torch.tensor([5, 4, 6]), 0.25)
    assert bias.tolist() == [0.0, 0.25, -0.25]


def test_max_violation() -> None:
    assert max_violation(torch.tensor([[4, 8], [6, 6], [0, 0]])).tolist() == pytest.approx([1 / 3, 0.0, 0.0])
