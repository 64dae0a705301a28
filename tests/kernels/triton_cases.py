"""Cases of the Triton kernels, run by test_triton_rows.py in a process whose Triton interprets, and on a device where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from rorqual.kernels import rows, triton_latent, triton_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = {"fp32": (torch.float32, 1e-5), "bf16": (torch.bfloat16, 2e-2)}


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def cache_of(lengths: list[int], width: int, dtype: torch.dtype, slots: int = 4) -> tuple[Tensor, Tensor]:
    """(cache, tables): NaN wherever no entry lies; blocks in no order, shorter tables filled up with their last block."""
    counts = [-(-length // slots) for length in lengths]
    order = torch.randperm(sum(counts) + 2, generator=torch.Generator().manual_seed(9)).tolist()
    cache = torch.full((len(order), slots, width), float("nan"), dtype=dtype, device=DEVICE)
    tables = []
    for number, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        own, order = order[:count], order[count:]
        entries = numbers(length, width, seed=100 + number, dtype=dtype)
        for at in range(length):
            cache[own[at // slots], at % slots] = entries[at]
        tables.append(own + own[-1:] * (max(counts) - count))
    return cache, torch.tensor(tables, device=DEVICE)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize(("latent", "rotary", "heads", "splits", "least"), [(24, 6, 3, 1, 64), (32, 16, 18, 3, 32)])
def test_attention_of_ragged_rows(kind: str, latent: int, rotary: int, heads: int, splits: int, least: int) -> None:
    """Lengths at and beside the borders of blocks (4), tiles (16 or 32) and shares, one query a sequence."""
    dtype, tolerance = CASES[kind]
    lengths = [1, 4, 5, 31, 32, 33, 97, 16]
    cache, tables = cache_of(lengths, latent + rotary, dtype)
    q, positions = numbers(len(lengths), heads, latent + rotary, dtype=dtype), torch.tensor(lengths, device=DEVICE) - 1
    got = triton_latent.latent_attention(q, cache, tables, positions, 0.3, latent, splits, least)
    want = rows.latent_attention(q, cache, tables, positions, 0.3, latent)
    assert got.isfinite().all() and (got.float() - want.float()).abs().max() < tolerance


def test_attention_by_hand() -> None:
    """Equal scores: the mean of the latents seen; the entry behind the position and the rotary part stay out."""
    cache, tables = torch.full((3, 2, 3), float("nan"), device=DEVICE), torch.tensor([[2, 0]], device=DEVICE)
    cache[2], cache[0, 0] = torch.tensor([[1.0, 10.0, 5.0], [2.0, 20.0, -5.0]]), torch.tensor([6.0, 60.0, 9.0])
    q = torch.zeros(1, 1, 3, device=DEVICE)
    for position, want in ((0, [1.0, 10.0]), (1, [1.5, 15.0]), (2, [3.0, 30.0])):
        got = triton_latent.latent_attention(q, cache, tables, torch.tensor([position], device=DEVICE), 1.0, 2)
        assert torch.allclose(got.flatten().cpu(), torch.tensor(want), rtol=1e-6)


@pytest.mark.parametrize("kind", CASES)
def test_a_row_of_attention_is_its_own(kind: str) -> None:
    """A draft chunk of three is causal; every row alone, among others, under wider tables or beside NaN entries has the same bits."""
    dtype, tolerance = CASES[kind]
    cache, tables = cache_of([80, 7, 40], 40, dtype)
    which, positions = torch.tensor([0, 0, 0, 1, 2], device=DEVICE), torch.tensor([77, 78, 79, 6, 39], device=DEVICE)
    q = numbers(5, 4, 40, dtype=dtype)
    whole = triton_latent.latent_attention(q, cache, tables[which], positions, 0.2, 32, 3, 32)
    want = rows.latent_attention(q, cache, tables[which], positions, 0.2, 32)
    assert (whole.float() - want.float()).abs().max() < tolerance
    for row in range(5):
        only = which[row : row + 1]
        wider = torch.cat([tables[only], tables[only][:, -1:].expand(1, 9)], dim=1)
        alone = triton_latent.latent_attention(q[row : row + 1], cache, wider, positions[row : row + 1], 0.2, 32, 3, 32)
        assert torch.equal(alone[0], whole[row])
    reordered = torch.tensor([4, 1, 3, 0, 2], device=DEVICE)
    again = triton_latent.latent_attention(q[reordered], cache, tables[which[reordered]], positions[reordered], 0.2, 32, 3, 32)
    assert torch.equal(again, whole[reordered])


@pytest.mark.parametrize("kind", CASES)
def test_norms_and_products(kind: str) -> None:
    """Values, and each row alone against the row among 19, over widths that no tile divides."""
    dtype, tolerance = CASES[kind]
    x, weight, head = numbers(19, 52, dtype=dtype), numbers(37, 52, seed=1, dtype=dtype), numbers(3, 20, 24, seed=2, dtype=dtype)
    norm, q = numbers(52, seed=3, dtype=dtype), numbers(19, 3, 20, seed=4, dtype=dtype)
    turned = head.transpose(1, 2)  # strides of any kind
    gate = numbers(8, 52, seed=5)
    calls = [
        (lambda m, at: m.rms_norm(x[at], norm, 1e-6)), (lambda m, at: m.linear(x[at], weight)), (lambda m, at: m.linear(x[at], gate, torch.float32)),
        (lambda m, at: m.linear(x[at], weight, torch.float32)), (lambda m, at: m.head_linear(q[at], turned)),
    ]  # fmt: skip
    for number, call in enumerate(calls):
        got, want = call(triton_rows, slice(None)), call(rows, slice(None))
        assert got.dtype == want.dtype
        exact = 1e-5 if got.dtype == torch.float32 else tolerance
        assert (got.float() - want.float()).abs().max() < exact * want.float().abs().max(), number
        for row in (0, 7, 15, 16, 18):
            assert torch.equal(call(triton_rows, slice(row, row + 1))[0], got[row]), (number, row)


@pytest.mark.parametrize("kind", CASES)
def test_experts(kind: str) -> None:
    """Experts with none, one, 16 and 17 rows; a row's sums are its own."""
    dtype, tolerance = CASES[kind]
    chosen = torch.tensor([[1, 4]] * 16 + [[4, 2], [0, 6]], device=DEVICE)
    x, weight = numbers(18, 20, dtype=dtype), numbers(8, 33, 20, seed=1, dtype=dtype)
    order = triton_rows.sort_by_expert(chosen, 8)
    assert order.ends.tolist() == [1, 17, 18, 18, 35, 35, 36, 36]
    got = triton_rows.expert_linear(x, weight, order.source, order.ends)
    want = rows.expert_linear(x, weight, order.source, order.ends)
    assert (got.float() - want.float()).abs().max() < tolerance * want.float().abs().max()
    weights, base = numbers(18, 2, seed=3), numbers(18, 33, seed=4, dtype=dtype)
    joined = triton_rows.combine(base, got, weights, order.slots)
    assert (joined.float() - rows.combine(base, got, weights, order.slots).float()).abs().max() < tolerance * joined.float().abs().max()
    for row in (0, 11, 16, 17):
        alone = triton_rows.sort_by_expert(chosen[row : row + 1], 8)
        made = triton_rows.expert_linear(x[row : row + 1], weight, alone.source, alone.ends)
        assert torch.equal(made[alone.slots[0]], got[order.slots[row]])
        assert torch.equal(triton_rows.combine(base[row : row + 1], made, weights[row : row + 1], alone.slots)[0], joined[row])


def test_no_rows() -> None:
    empty = torch.empty(0, 20, device=DEVICE)
    assert triton_rows.rms_norm(empty, torch.ones(20, device=DEVICE), 1e-6).shape == (0, 20)
    assert triton_rows.linear(empty, numbers(7, 20)).shape == (0, 7)
