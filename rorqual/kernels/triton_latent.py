"""Attention of a few query rows over the paged latent cache as Triton kernels (report sections 2.1.1 and 3.4; equations 1-11, absorbed).

    out = latent_attention(q, cache, tables, positions, scale)

Row i sees entries 0 .. positions[i] of the sequence whose blocks are tables[i]; a draft chunk is several rows with one table and positions
one apart, which makes it causal. The keys of a row are shared out among `splits` programs, each keeping a running softmax in FP32, and a
second kernel joins them in their order. The borders of the shares depend on the row's own position alone, and nothing is added up across
rows, so a row's bits do not depend on the other rows. Slots behind a row's position are never read. With FP32 tensors the products are
IEEE FP32 (no TF32); with BF16 the probabilities are rounded to BF16 for the second product, sums are FP32.

Checked in Triton's interpreter on a CPU (tests/kernels/triton_cases.py), and compiled to machine code of compute capability 8.0 and 9.0
(test_triton_latent.py); never run on a device. The widths of the tiles are estimates: the largest without spilled registers for 512 + 64.
Importing this file needs the package triton. Shape letters: n rows, h head, c latent width, r rotary width, e = c + r, k blocks, s slots,
t blocks of a table.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,import-untyped]
import triton.language as tl  # type: ignore[import-not-found,import-untyped]
from jaxtyping import Float, Int
from torch import Tensor

SPLITS = 16
"""Programs that share a row's keys: with 8 tiles of heads, about as many as a large GPU has multiprocessors."""
LEAST = 64
"""Keys of a share at least, so that a short row is not cut into crumbs."""
_HEADS = 16  # of a tile: the smallest that tensor cores take


@triton.jit
def _share(length, SPLITS: tl.constexpr, LEAST: tl.constexpr, KEYS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Keys of one share of a row that sees `length` keys; a multiple of KEYS."""
    each = (length + SPLITS - 1) // SPLITS
    return tl.maximum((each + KEYS - 1) // KEYS * KEYS, LEAST)


@triton.jit(do_not_specialize=["table_row"])
def _attend(  # type: ignore[no-untyped-def]
    q, cache, tables, positions, sums, stats, scale, num_heads, latent, rotary, q_row, q_head, cache_block, cache_slot, table_row,
    SLOTS: tl.constexpr, SPLITS: tl.constexpr, LEAST: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, LATENT: tl.constexpr,
    ROTARY: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Scores and mixed latents of one share of one row's keys: unnormalised sums, and (largest score, sum of exponentials) of each head."""
    row, part = tl.program_id(0), tl.program_id(2)
    length = tl.load(positions + row).to(tl.int32) + 1
    share = _share(length, SPLITS, LEAST, KEYS)
    begin = part * share
    end = tl.minimum(begin + share, length)
    if begin >= length:
        return
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    wide, narrow = tl.arange(0, LATENT), tl.arange(0, ROTARY)
    real_head, real_wide, real_narrow = heads < num_heads, wide < latent, narrow < rotary
    at = q + row.to(tl.int64) * q_row + heads[:, None] * q_head
    q_latent = tl.load(at + wide[None, :], mask=real_head[:, None] & real_wide[None, :], other=0.0)
    q_rope = tl.load(at + latent + narrow[None, :], mask=real_head[:, None] & real_narrow[None, :], other=0.0)
    most = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    mixed = tl.zeros([HEADS, LATENT], tl.float32)
    for start in range(begin, end, KEYS):
        keys = start + tl.arange(0, KEYS)
        seen = keys < end
        block = tl.load(tables + row.to(tl.int64) * table_row + keys // SLOTS, mask=seen, other=0).to(tl.int64)
        entry = cache + block * cache_block + (keys % SLOTS) * cache_slot
        c_kv = tl.load(entry[:, None] + wide[None, :], mask=seen[:, None] & real_wide[None, :], other=0.0)
        k_rope = tl.load(entry[:, None] + latent + narrow[None, :], mask=seen[:, None] & real_narrow[None, :], other=0.0)
        if WIDEN:
            scores = tl.dot(q_latent.to(tl.float32), tl.trans(c_kv.to(tl.float32)), input_precision="ieee")
            scores = tl.dot(q_rope.to(tl.float32), tl.trans(k_rope.to(tl.float32)), scores, input_precision="ieee")
        else:
            scores = tl.dot(q_latent, tl.trans(c_kv), input_precision="ieee")
            scores = tl.dot(q_rope, tl.trans(k_rope), scores, input_precision="ieee")
        scores = tl.where(seen[None, :], scores * scale, float("-inf"))
        larger = tl.maximum(most, tl.max(scores, 1))
        faded, weight = tl.exp(most - larger), tl.exp(scores - larger[:, None])
        total = total * faded + tl.sum(weight, 1)
        rounded, mixed = weight.to(c_kv.dtype), mixed * faded[:, None]
        if WIDEN:
            mixed = tl.dot(rounded.to(tl.float32), c_kv.to(tl.float32), mixed, input_precision="ieee")
        else:
            mixed = tl.dot(rounded, c_kv, mixed, input_precision="ieee")
        most = larger
    place = (row.to(tl.int64) * num_heads + heads) * SPLITS + part
    tl.store(sums + place[:, None] * latent + wide[None, :], mixed, mask=real_head[:, None] & real_wide[None, :])
    tl.store(stats + 2 * place, most, mask=real_head)
    tl.store(stats + 2 * place + 1, total, mask=real_head)


@triton.jit
def _join(  # type: ignore[no-untyped-def]
    sums, stats, positions, out, num_heads, latent, SPLITS: tl.constexpr, LEAST: tl.constexpr, KEYS: tl.constexpr, LATENT: tl.constexpr
):
    """Joins the shares of one row and head, first to last."""
    row = tl.program_id(0)
    place = row.to(tl.int64) * num_heads + tl.program_id(1)
    length = tl.load(positions + row).to(tl.int32) + 1
    share = _share(length, SPLITS, LEAST, KEYS)
    wide = tl.arange(0, LATENT)
    real = wide < latent
    most = tl.load(stats + 2 * place * SPLITS)
    total = tl.load(stats + 2 * place * SPLITS + 1)
    mixed = tl.load(sums + place * SPLITS * latent + wide, mask=real, other=0.0)
    for part in range(1, (length + share - 1) // share):
        at = place * SPLITS + part
        here = tl.load(stats + 2 * at)
        larger = tl.maximum(most, here)
        old, new = tl.exp(most - larger), tl.exp(here - larger)
        total = total * old + tl.load(stats + 2 * at + 1) * new
        mixed = mixed * old + tl.load(sums + at * latent + wide, mask=real, other=0.0) * new
        most = larger
    tl.store(out + place * latent + wide, (mixed / total).to(out.dtype.element_ty), mask=real)


def latent_attention(
    q: Float[Tensor, "n h e"], cache: Float[Tensor, "k s e"], tables: Int[Tensor, "n t"], positions: Int[Tensor, " n"], scale: float,
    latent: int, splits: int = SPLITS, least: int = LEAST,
) -> Float[Tensor, "n h c"]:  # fmt: skip
    """softmax(q . entries * scale) times the entries' first `latent` numbers, for every row and head; rows.latent_attention says what is right.

    q and cache have one type, FP32 or BF16, and adjacent numbers in an entry. `splits` and `least` (keys of a share at least, a multiple of 32)
    change the order of the sums, so a model keeps to one choice of them.
    """
    n, heads, entry = q.shape
    wide, narrow = _power(latent), _power(entry - latent)
    keys = 32 if q.element_size() == 2 else 16
    sums = torch.empty(n, heads, splits, latent, dtype=torch.float32, device=q.device)
    stats = torch.empty(n, heads, splits, 2, dtype=torch.float32, device=q.device)
    out = torch.empty(n, heads, latent, dtype=q.dtype, device=q.device)
    if n == 0:
        return out
    _attend[(n, triton.cdiv(heads, _HEADS), splits)](
        q, cache, tables, positions, sums, stats, scale, heads, latent, entry - latent, q.stride(0), q.stride(1), cache.stride(0),
        cache.stride(1), tables.stride(0), SLOTS=cache.shape[1], SPLITS=splits, LEAST=least, HEADS=_HEADS, KEYS=keys, LATENT=wide,
        ROTARY=narrow, WIDEN=widens(q.dtype), num_warps=8 if wide > 256 else 4, num_stages=2, enable_fp_fusion=True,
    )  # fmt: skip
    _join[(n, heads)](sums, stats, positions, out, heads, latent, SPLITS=splits, LEAST=least, KEYS=keys, LATENT=wide, enable_fp_fusion=True)
    return out


def widens(dtype: torch.dtype) -> bool:
    """Whether products of tiles need FP32 operands: Triton's interpreter multiplies the bits of BF16 numbers. The values are exact in FP32."""
    return dtype == torch.bfloat16 and triton.knobs.runtime.interpret


def _power(width: int) -> int:
    """The power of two that holds `width` numbers, at least the 16 that a product of tiles needs."""
    return max(16, triton.next_power_of_2(width))
