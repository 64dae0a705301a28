"""Each operation on its chosen backend against the plain PyTorch version, values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rorqual.kernels import native, ops, reference

compiled = pytest.mark.skipif(native.library().library is None, reason=f"compiled kernels: {native.library().detail}")
G = torch.Generator().manual_seed(0)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=G)


def agree(got: Callable[..., object], want: Callable[..., object], *inputs: torch.Tensor) -> None:
    results = []
    for call in (got, want):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = call(*leaves)
        out = out[0] if isinstance(out, tuple) else out
        upstream = torch.linspace(-1, 1, out.numel()).view(out.shape)
        results.append([out, *torch.autograd.grad(out, leaves, upstream)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@compiled
@pytest.mark.parametrize("shape", [(1, 1), (37, 100), (5, 16), (64, 17)])
def test_rms_norm(shape: tuple[int, int]) -> None:
    agree(lambda x, w: ops.rms_norm(x, w, 1e-6), lambda x, w: reference.rms_norm(x, w, 1e-6), randn(*shape), randn(shape[1]))


@compiled
def test_rms_norm_of_a_slice() -> None:
    wide = randn(3, 4, 40)
    agree(lambda x, w: ops.rms_norm(x[..., :24], w, 1e-6), lambda x, w: reference.rms_norm(x[..., :24], w, 1e-6), wide, randn(24))


@compiled
def test_swiglu_of_small_and_large_values() -> None:
    gate = torch.cat([randn(20, 33), 100 * randn(20, 33)])
    agree(ops.swiglu, reference.swiglu, gate, randn(40, 33))
    hidden, d_out = randn(9, 22), randn(9, 11)
    torch.testing.assert_close(ops.swiglu_packed(hidden), reference.swiglu_packed(hidden))
    for a, b in zip(ops.swiglu_packed_backward(d_out, hidden), reference.swiglu_packed_backward(d_out, hidden), strict=True):
        torch.testing.assert_close(a, b)


@compiled
@pytest.mark.parametrize("length", [1, 5, 63, 64, 65, 300])
@pytest.mark.parametrize("values", [12, 20, 40])
def test_mla_heads_and_attention(length: int, values: int) -> None:
    b, h, nope, r = 2, 3, 16, 8
    angle = torch.arange(length).unsqueeze(-1) * torch.tensor([1.0, 0.5, 0.1, 0.01])
    cos, sin = angle.cos().unsqueeze(0), angle.sin().unsqueeze(0)

    def call(module: object) -> Callable[..., torch.Tensor]:
        tables = cos.expand(b, -1, -1), sin.expand(b, -1, -1)
        return lambda q, kv, k: module.attention(*module.mla_heads(q, kv, k, *tables), 0.3, None)  # type: ignore[attr-defined]

    agree(call(ops), call(reference), randn(b, length, h, nope + r), randn(b, length, h * (nope + values)), randn(b, length, r))


@compiled
def test_attention_under_a_mask_and_without() -> None:
    b, s, h = 1, 20, 2
    angle = torch.arange(s).unsqueeze(-1) * torch.tensor([1.0, 0.1])
    cos, sin = angle.cos().unsqueeze(0), angle.sin().unsqueeze(0)
    inputs = randn(b, s, h, 12), randn(b, s, h * 14), randn(b, s, 4)
    mask = torch.ones(s, s, dtype=torch.bool).tril() & (torch.arange(s) // 7 == torch.arange(s).unsqueeze(1) // 7)
    for wanted in (mask.unsqueeze(0), None):
        agree(
            *(lambda q, kv, k, m=module, w=wanted: m.attention(*m.mla_heads(q, kv, k, cos, sin), 0.3, w) for module in (ops, reference)),
            *inputs,
        )


@compiled
def test_linear_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_VOCABULARY_CHUNK", 50 * 64)
    targets = torch.randint(0, 50, (300,), generator=G)
    targets[5:9] = -100
    hidden, weight = randn(300, 24), randn(50, 24)
    agree(
        lambda h, w: ops.linear_cross_entropy(h, w, targets, 0.25),
        lambda h, w: reference.linear_cross_entropy(h, w, targets, 0.25),
        hidden,
        weight,
    )
    scaled, plain = ops.linear_cross_entropy(hidden, weight, targets, 0.25)
    assert float(scaled) == pytest.approx(0.25 * float(plain))
    assert float(ops.linear_cross_entropy(hidden, weight, torch.full((300,), -100), 1.0)[0]) == 0.0


def test_non_finite_logits_show_in_the_loss() -> None:
    hidden = randn(4, 8)
    hidden[2] = float("nan")
    assert ops.linear_cross_entropy(hidden, randn(10, 8), torch.arange(4), 1.0)[0].isnan()


@compiled
def test_dispatch_and_combine() -> None:
    indices = torch.stack([torch.randperm(8, generator=G)[:3] for _ in range(50)])
    sorted_ = ops.sort_by_expert(indices, 8)
    for a, b in zip(sorted_, reference.sort_by_expert(indices, 8), strict=True):
        assert torch.equal(a, b)
    source, slots, _ = sorted_
    agree(lambda x: ops.gather_rows(x, source, slots), lambda x: reference.gather_rows(x, source, slots), randn(50, 20))
    agree(
        lambda r, w: ops.combine_rows(r, w, slots, source),
        lambda r, w: reference.combine_rows(r, w, slots, source),
        randn(150, 20),
        randn(50, 3),
    )


@compiled
def test_top_k_and_its_ties() -> None:
    x = randn(40, 33)
    for a, b in zip(ops.top_k(x, 7), reference.top_k(x, 7), strict=True):
        assert torch.equal(a, b)
    assert ops.top_k(torch.zeros(1, 5), 3)[1].tolist() == [[0, 1, 2]]
    assert ops.top_k(torch.full((1, 4), float("-inf")), 2)[1].tolist() == [[0, 1]]


@compiled
@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16])
def test_adamw(moments: torch.dtype) -> None:
    state = [randn(1000), randn(1000), randn(1000).to(moments), randn(1000).abs().to(moments)]
    ours, plain = [t.clone() for t in state], [t.clone() for t in state]
    constants = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "step": 3, "grad_scale": 0.5}
    ops.adamw(*ours, **constants)
    reference.adamw(*plain, **constants)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5 if moments == torch.float32 else 1e-2)


def test_sum_of_squares() -> None:
    x = randn(1001)
    assert ops.sum_of_squares(x) == pytest.approx(float(x.double().square().sum()), rel=1e-12)


@compiled
def test_a_row_does_not_depend_on_its_neighbours_or_on_threads() -> None:
    x, w = randn(64, 48), randn(48)
    whole = ops.rms_norm(x, w, 1e-6)
    assert all(torch.equal(ops.rms_norm(x[i : i + 1], w, 1e-6)[0], whole[i]) for i in range(64))
    threads = torch.get_num_threads()
    try:
        grads = []
        for count in (1, threads):
            torch.set_num_threads(count)
            leaf = w.clone().requires_grad_()
            ops.rms_norm(x, leaf, 1e-6).square().sum().backward()
            grads.append(leaf.grad)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(grads[0], grads[1])


def test_backend_report_names_every_choice() -> None:
    rows = ops.backend_report()
    assert {"rms_norm", "attention", "grouped GEMM"} <= {row["op"] for row in rows}
    assert all(row["backend"] and row["why"] for row in rows)


def test_isolated_attention_is_attention_under_the_mask_of_its_runs() -> None:
    runs = ((3, 6), (4, 1, 4))
    numbers = torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in runs])
    mask = (numbers.unsqueeze(1) == numbers.unsqueeze(2)).tril()
    agree(
        lambda q, k, v: ops.isolated_attention(q, k, v, 0.3, runs), lambda q, k, v: reference.attention(q, k, v, 0.3, mask),
        randn(2, 3, 9, 8), randn(2, 3, 9, 8), randn(2, 3, 9, 5),
    )  # fmt: skip


@compiled
def test_a_run_has_the_bits_it_has_alone_whatever_stands_beside_it() -> None:
    """Output and gradients: packed samples do not see each other, and threads only share out whole heads."""
    lengths, h = (70, 1, 129, 8), 3
    q, k, v, above = (torch.randn(1, h, sum(lengths), w, generator=G).requires_grad_() for w in (20, 20, 12, 12))
    above = above.detach().transpose(1, 2).flatten(2)
    packed = ops.isolated_attention(q, k, v, 0.3, (lengths,))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        grads = torch.autograd.grad(packed, (q, k, v), above)
    finally:
        torch.set_num_threads(threads)
    start = 0
    for length in lengths:
        part = [one[:, :, start : start + length].detach().requires_grad_() for one in (q, k, v)]
        alone = ops.attention(*part, 0.3, None)
        assert torch.equal(packed[:, start : start + length], alone)
        wanted = torch.autograd.grad(alone, part, above[:, start : start + length])
        for got, want in zip(grads, wanted, strict=True):
            assert torch.equal(got[:, :, start : start + length], want)
        start += length


@compiled
def test_scores_far_apart_and_equal_ones_by_hand() -> None:
    """One head of width 1: scores 0 and 200 give the second value alone; equal scores the mean."""
    q, v = torch.tensor([[[[0.0], [200.0], [0.0]]]]), torch.tensor([[[[1.0], [4.0], [7.0]]]])
    k = torch.tensor([[[[0.0], [1.0], [5.0]]]])
    assert ops.attention(q, k, v, 1.0, None).flatten().tolist() == pytest.approx([1.0, 4.0, 4.0])


@compiled
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 32), (48, 16), (272, 80)])
def test_grouped_gemms_of_the_experts(inputs: int, outputs: int) -> None:
    """Few and many rows, experts without any, more terms than a pass takes; widths that are no whole 16s go to the reference."""
    for width in (inputs, inputs - 4):
        counts = torch.tensor([0, 1, 130, 0, 7, 300, 64])
        offs, rows = counts.cumsum(0).to(torch.int32), int(counts.sum())
        x, dy, weight = (
            torch.randn(rows, width, generator=G),
            torch.randn(rows, outputs, generator=G),
            torch.randn(7, outputs, width, generator=G),
        )
        torch.testing.assert_close(ops.grouped_fprop(x, weight, offs), reference.grouped_fprop(x, weight, offs), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ops.grouped_dgrad(dy, weight, offs), reference.grouped_dgrad(dy, weight, offs), atol=1e-4, rtol=1e-4)
        got = ops.grouped_wgrad(dy, x, offs, weight)
        torch.testing.assert_close(got, reference.grouped_wgrad(dy, x, offs, weight), atol=1e-3, rtol=1e-4)
        assert not got[0].any() and not got[3].any()


@compiled
def test_a_row_of_an_expert_has_the_bits_it_has_alone() -> None:
    x, dy, weight = torch.randn(77, 96, generator=G), torch.randn(77, 48, generator=G), torch.randn(2, 48, 96, generator=G)
    offs = torch.tensor([70, 77], dtype=torch.int32)
    y, dx = ops.grouped_fprop(x, weight, offs), ops.grouped_dgrad(dy, weight, offs)
    for row in (0, 33, 69, 76):
        alone = torch.tensor([1, 1] if row < 70 else [0, 1], dtype=torch.int32)
        assert torch.equal(ops.grouped_fprop(x[row : row + 1], weight, alone)[0], y[row])
        assert torch.equal(ops.grouped_dgrad(dy[row : row + 1], weight, alone)[0], dx[row])
