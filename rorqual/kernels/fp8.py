"""Block-scaled FP8 (E4M3) to numbers and back: the storage of the released weights (report section 3.3; specification 6.2, 10.2).

    value[i, j] = code[i, j] * scale_inv[i // rows, j // columns]      scale_inv [ceil(o / rows), ceil(i / columns)]

The block size comes from the configuration, never from the shapes: 576 rows have 5 row blocks of 128, the last one ragged (field case F08).
The product is taken in FP32 and rounded once. Compiled code (fp8.cpp) on a CPU, else plain PyTorch (reference.py), bit for bit alike.
Shape letters: o rows, i columns, p row blocks, q column blocks.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from rorqual.errors import FormatError
from rorqual.kernels import native, reference

E4M3_MAX = 448.0
SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float8_e8m0fnu)


def scale_shape(rows: int, columns: int, block: tuple[int, int]) -> tuple[int, int]:
    """Shape of the scales of a [rows, columns] matrix: both sides divided by the block's and rounded up."""
    return -(-rows // block[0]), -(-columns // block[1])


def dequantize(
    codes: Shaped[Tensor, "o i"],
    scale_inv: Shaped[Tensor, "p q"],
    block: tuple[int, int],
    *,
    dtype: torch.dtype = torch.bfloat16,
    first_row: int = 0,
    out: Float[Tensor, "o i"] | None = None,
) -> Float[Tensor, "o i"]:
    """The values of E4M3 codes, rounded once to `dtype` (BF16 or FP32); NaN codes give NaN.

    codes: uint8 or float8_e4m3fn; they may be rows `first_row` and up of a taller matrix. scale_inv: the whole matrix's scales in FP32,
    BF16 or E8M0. out: where to put the values (dense rows); an FP32 `out` with dtype BF16 holds the rounded values in FP32.
    Raises FormatError for other types, and for scales that do not fit the block size.
    """
    _check(codes, scale_inv, block, dtype, first_row, out)
    if out is None:
        out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    if codes.numel():
        use_native = native.reachable(codes, scale_inv, out)
        (native if use_native else reference).fp8_dequantize(codes, scale_inv.float(), block, first_row, dtype, out)
    return out


def quantize(
    values: Float[Tensor, "o i"], block: tuple[int, int], *, scale_fmt: str | None = None
) -> tuple[Float[Tensor, "o i"], Float[Tensor, "p q"]]:
    """(codes in float8_e4m3fn, scale_inv in FP32): per block s = amax / 448, amax at least 1e-4 as the released quantiser has it.

    codes = value / s to the nearest, ties to even, so that code * s is within half a step of E4M3 of the value. scale_fmt "ue8m0" (V3.1)
    rounds s up to a power of two. values: FP32, BF16 or FP16. Raises FormatError for NaN or infinity, with its place.
    """
    if values.dim() != 2 or values.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise FormatError(f"values are {values.dtype} {list(values.shape)}; a matrix in FP32, BF16 or FP16 can be quantised to FP8")
    _check_block(block)
    if scale_fmt not in (None, "ue8m0"):
        raise FormatError(f"scale_fmt ({scale_fmt!r}) is not known; use None, or 'ue8m0' for scales that are powers of two")
    values = values.detach()
    codes = torch.empty(values.shape, dtype=torch.float8_e4m3fn, device=values.device)
    scales = torch.empty(scale_shape(values.shape[0], values.shape[1], block), dtype=torch.float32, device=values.device)
    if values.numel():
        bad = (native if native.reachable(values) else reference).fp8_quantize(values, block, scale_fmt == "ue8m0", codes, scales)
        if bad is not None:
            _refuse(values, block, bad)
    return codes, scales


def _refuse(values: Tensor, block: tuple[int, int], place: tuple[int, int]) -> None:
    """Names the first number of a block that FP8 cannot hold."""
    top, left = place[0] * block[0], place[1] * block[1]
    part = values[top : top + block[0], left : left + block[1]]
    row, column = torch.nonzero(~torch.isfinite(part))[0].tolist()
    raise FormatError(
        f"value [{top + row}, {left + column}] is {float(part[row, column])}; FP8 blocks hold finite numbers only: repair the weights, or keep them in BF16"
    )


def _check_block(block: tuple[int, int]) -> None:
    if len(block) != 2 or not all(type(side) is int and side > 0 for side in block):
        raise FormatError(f"block ({block!r}) must be two whole numbers above 0, e.g. (128, 128)")


def _check(codes: Tensor, scale_inv: Tensor, block: tuple[int, int], dtype: torch.dtype, first_row: int, out: Tensor | None) -> None:
    _check_block(block)
    if codes.dim() != 2 or codes.dtype not in (torch.uint8, torch.float8_e4m3fn):
        raise FormatError(f"codes are {codes.dtype} {list(codes.shape)}; a matrix of uint8 or float8_e4m3fn is needed")
    if dtype not in (torch.bfloat16, torch.float32):
        raise FormatError(f"dtype ({dtype}) must be torch.bfloat16 or torch.float32")
    if scale_inv.dim() != 2 or scale_inv.dtype not in SCALE_DTYPES:
        raise FormatError(f"scale_inv is {scale_inv.dtype} {list(scale_inv.shape)}; a matrix in FP32, BF16 or E8M0 is needed")
    rows, columns = scale_shape(first_row + codes.shape[0], codes.shape[1], block)
    if first_row < 0 or scale_inv.shape[1] != columns or scale_inv.shape[0] < rows:
        raise FormatError(
            f"scale_inv {list(scale_inv.shape)} does not fit rows {first_row} to {first_row + codes.shape[0]} of {codes.shape[1]} columns: "
            f"blocks of {block[0]} x {block[1]} need at least {rows} rows and exactly {columns} columns of scales"
        )
    if out is not None and (out.shape != codes.shape or out.dtype not in (dtype, torch.float32) or out.stride(1) != 1):
        raise FormatError(f"out is {out.dtype} {list(out.shape)}; {dtype} or FP32 {list(codes.shape)} with dense rows is needed")
