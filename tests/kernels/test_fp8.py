"""Block-scaled E4M3: every code, ragged edges, three scale types, and half a step on the way back; compiled and plain alike."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rorqual.errors import FormatError
from rorqual.kernels import fp8, native, reference

G = torch.Generator().manual_seed(11)
E4M3 = torch.float8_e4m3fn
ALL = torch.arange(256, dtype=torch.uint8)


@pytest.fixture(params=["compiled", "plain"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain":
        monkeypatch.setattr(native, "reachable", lambda *tensors: False)
    elif native.library().library is None:
        pytest.skip(f"compiled kernels: {native.library().detail}")


def by_definition(code: int) -> float:
    """Sign, 4 exponent bits of bias 7, 3 mantissa bits; no infinity, one NaN per sign."""
    sign, exponent, mantissa = (-1.0 if code & 0x80 else 1.0), code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bits, signs of zero included; any NaN equals any NaN."""
    kind = torch.int16 if a.dtype == torch.bfloat16 else torch.int32
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and bool(((a.view(kind) == b.view(kind)) | a.isnan()).all())


@pytest.mark.parametrize("view", [torch.uint8, E4M3])
def test_every_code_has_its_value(backend: None, view: torch.dtype) -> None:
    want = torch.tensor([[by_definition(code) for code in range(256)]])
    got = fp8.dequantize(ALL.view(view).view(1, 256), torch.ones(1, 2), (128, 128), dtype=torch.float32)
    assert same(got, want) and int(got.isnan().sum()) == 2 and float(got[0, 126]) == 448.0
    assert math.copysign(1.0, float(got[0, 128])) == -1.0


@pytest.mark.parametrize("scale", [1.0, 0.0123, 3.0e-7, 1.7e36, 2.0**-127, 0.0, math.nan, -2.5])
def test_the_product_is_rounded_once(backend: None, scale: float) -> None:
    codes, scales = ALL.view(1, 256), torch.full((1, 1), scale)
    exact = torch.tensor([[by_definition(code) for code in range(256)]], dtype=torch.float64)
    product = (exact * scales.double()).float()  # a product of 4 and 24 significant bits, rounded to FP32 once
    assert same(fp8.dequantize(codes, scales, (1, 256), dtype=torch.float32), product)
    assert same(fp8.dequantize(codes, scales, (1, 256)), product.bfloat16())
    held = fp8.dequantize(codes, scales, (1, 256), out=torch.empty(1, 256))
    assert same(held, product.bfloat16().float())


def test_ragged_edges(backend: None) -> None:
    """Field case F08: blocks are cut from the top left; the block size is never divided out of the shapes."""
    ones = torch.ones(130, 200).to(E4M3)
    got = fp8.dequantize(ones, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), (128, 128))
    assert [float(got[i, j]) for i, j in ((127, 127), (127, 128), (128, 127), (129, 199))] == [1.0, 2.0, 3.0, 4.0]
    assert float(got.double().sum()) == 36160.0
    rows = torch.arange(1.0, 6.0).view(5, 1).expand(5, 56)
    tall = fp8.dequantize(torch.ones(576, 7168).to(E4M3), rows, (128, 128))
    assert torch.equal(tall[:, 0].float(), torch.tensor([1.0 + i // 128 for i in range(576)]))
    two = [fp8.dequantize(torch.ones(160, 8).to(E4M3), torch.tensor([[a], [b]]), (128, 128)) for a, b in ((1.0, 2.0), (3.0, 4.0))]
    fused = torch.cat(two)
    assert fused[:, 0].tolist() == [1.0] * 128 + [2.0] * 32 + [3.0] * 128 + [4.0] * 32


@pytest.mark.parametrize("dtype", fp8.SCALE_DTYPES)
def test_scale_types(backend: None, dtype: torch.dtype) -> None:
    scales = torch.tensor([[0.5, 2.0**-20, 4.0]]).to(dtype)
    got = fp8.dequantize(torch.full((3, 5), 0x38, dtype=torch.uint8), scales, (4, 2))
    assert got[2].tolist() == [0.5, 0.5, 2.0**-20, 2.0**-20, 4.0]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 17), st.integers(1, 17), st.integers(0, 2**31))
def test_compiled_equals_plain_for_any_rows(rows: int, columns: int, br: int, bc: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, columns + 3), generator=g, dtype=torch.uint8)[:, :columns]
    scales = torch.randn(fp8.scale_shape(rows, columns, (br, bc)), generator=g)
    whole = fp8.dequantize(codes, scales, (br, bc), dtype=torch.float32)
    plain = torch.empty(rows, columns)
    reference.fp8_dequantize(codes.contiguous(), scales, (br, bc), 0, torch.float32, plain)
    assert same(whole, plain)
    begin = seed % rows
    part = fp8.dequantize(codes[begin:], scales, (br, bc), dtype=torch.float32, first_row=begin)
    assert same(part, whole[begin:].contiguous())


def half_step(values: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """Half the distance of neighbouring E4M3 codes around value / scale, times the scale."""
    s = scales.repeat_interleave(block[0], 0)[: values.shape[0]].repeat_interleave(block[1], 1)[:, : values.shape[1]].double()
    exponent = torch.frexp((values.double() / s).abs())[1].clamp(min=-5) - 1
    return torch.ldexp(torch.ones_like(s), exponent - 4) * s


@pytest.mark.parametrize("scale_fmt", [None, "ue8m0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "block"), [((130, 200), (128, 128)), ((576, 130), (128, 128)), ((7, 5), (3, 2)), ((1, 1), (128, 128))])
def test_there_and_back_within_half_a_step(backend: None, shape, block, dtype: torch.dtype, scale_fmt: str | None) -> None:
    values = (torch.randn(shape, generator=G) * torch.logspace(-3, 2, shape[1])).to(dtype)
    codes, scales = fp8.quantize(values, block, scale_fmt=scale_fmt)
    assert codes.dtype == E4M3 and scales.shape == fp8.scale_shape(*shape, block)
    back = fp8.dequantize(codes, scales, block, dtype=torch.float32)
    wide = values.double()
    assert bool(((back.double() - wide).abs() <= half_step(wide, scales, block) * (1 + 1e-6)).all())
    if scale_fmt:
        assert torch.equal(torch.frexp(scales)[0], torch.full_like(scales, 0.5))
        again, scales2 = fp8.quantize(back, block, scale_fmt=scale_fmt)  # a power of two loses nothing: the same numbers again
        assert torch.equal(fp8.dequantize(again, scales2, block, dtype=torch.float32), back)
    plain = torch.empty_like(codes), torch.empty_like(scales)
    assert reference.fp8_quantize(values, block, scale_fmt is not None, *plain) is None
    assert torch.equal(plain[1], scales) and torch.equal(plain[0].view(torch.uint8), codes.view(torch.uint8))


def test_rounding_to_even_at_every_half_way_point(backend: None) -> None:
    codes = torch.arange(0x7E, dtype=torch.uint8)
    low, high = codes.view(E4M3).float(), (codes + 1).view(E4M3).float()
    values = torch.cat([(low + high) / 2, torch.tensor([448.0])]).view(1, -1)  # 448 makes the scale 1
    got, scale = fp8.quantize(torch.cat([values, -values]), (2, 127))
    assert scale.tolist() == [[1.0]]
    want = torch.cat([codes + (codes & 1), torch.tensor([0x7E], dtype=torch.uint8)])
    assert torch.equal(got.view(torch.uint8), torch.stack([want, want | 0x80]))


def test_scales(backend: None) -> None:
    assert fp8.quantize(torch.zeros(2, 2), (2, 2))[1].item() == pytest.approx(1e-4 / 448)
    assert fp8.quantize(torch.full((2, 2), 896.0), (2, 2), scale_fmt="ue8m0")[1].item() == 2.0
    assert fp8.quantize(torch.full((2, 2), 897.0), (2, 2), scale_fmt="ue8m0")[1].item() == 4.0
    codes, _ = fp8.quantize(torch.tensor([[3.4e38, -3.4e38, 1.0]]), (1, 3))
    assert codes.float().tolist() == [[448.0, -448.0, 0.0]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_is_named(backend: None, value: float, dtype: torch.dtype) -> None:
    values = torch.ones(10, 10, dtype=dtype)
    values[7, 5], values[9, 9] = value, value
    with pytest.raises(FormatError, match=r"value \[7, 5\] is .*finite numbers only"):
        fp8.quantize(values, (4, 4))


def test_what_does_not_belong_together_is_refused() -> None:
    codes, scales = torch.zeros(130, 200, dtype=torch.uint8), torch.ones(2, 2)
    for bad in (torch.ones(1, 2), torch.ones(2, 1), torch.ones(2, 3)):
        with pytest.raises(FormatError, match="does not fit rows 0 to 130 of 200 columns"):
            fp8.dequantize(codes, bad, (128, 128))
    with pytest.raises(FormatError, match="does not fit rows 200 to 330"):
        fp8.dequantize(codes, scales, (128, 128), first_row=200)
    with pytest.raises(FormatError, match="codes are torch.int64"):
        fp8.dequantize(codes.long(), scales, (128, 128))
    with pytest.raises(FormatError, match="scale_inv is torch.float16"):
        fp8.dequantize(codes, scales.half(), (128, 128))
    with pytest.raises(FormatError, match="dtype"):
        fp8.dequantize(codes, scales, (128, 128), dtype=torch.float16)
    with pytest.raises(FormatError, match="two whole numbers"):
        fp8.dequantize(codes, scales, (128, 0))
    with pytest.raises(FormatError, match="out is"):
        fp8.dequantize(codes, scales, (128, 128), out=torch.empty(200, 130).t())
    with pytest.raises(FormatError, match="values are torch.float64"):
        fp8.quantize(torch.ones(2, 2, dtype=torch.float64), (128, 128))
    with pytest.raises(FormatError, match="scale_fmt"):
        fp8.quantize(torch.ones(2, 2), (2, 2), scale_fmt="e4m3")


def test_nothing_to_do() -> None:
    assert fp8.dequantize(torch.empty(0, 200, dtype=torch.uint8), torch.ones(2, 2), (128, 128), first_row=130).shape == (0, 200)
    codes, scales = fp8.quantize(torch.empty(0, 5), (2, 2))
    assert codes.shape == (0, 5) and scales.shape == (0, 3)
