"""Panels hold a matrix's values in the order that the kernel reads; the lossy types by their rounding."""

import ctypes

import pytest
import torch

from rorqual.errors import ConfigError
from rorqual.kernels import native
from rorqual.kernels.decode import _Matrix
from rorqual.kernels.memory import LargePages
from rorqual.kernels.panels import KINDS, Panels, most_rounded


def _weight(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_layout_and_values():
    """Input by input: 32 outputs of a pair of panels, then the odd panel's 16, the missing ones zero."""
    weight = torch.arange(34.0 * 3).view(34, 3)
    panels = Panels(weight)
    assert panels.values.shape == (1, 48 * 3) and panels.outputs == 34
    assert panels.values[0, 32:64].tolist() == [3.0 * o + 1 for o in range(32)]
    assert panels.values[0, 3 * 32 + 2 * 16 :].tolist() == [98.0, 101.0] + [0.0] * 14
    assert torch.equal(panels.dense()[0], weight)
    stacked = _weight(3, 10, 7)
    assert torch.equal(Panels(stacked, halves=True).dense(), stacked.view(6, 5, 7))
    panels.fill(weight + 1)
    assert torch.equal(panels.dense()[0], weight + 1)


def test_side_by_side_they_hold_the_same():
    memory, given = LargePages(), [(_weight(34, 3), "fp32"), (_weight(5, 7), "int8"), (_weight(33, 3), "bf16")]
    made = [Panels(*one, memory=memory) for one in given]
    assert all(torch.equal(panels.values, Panels(*one).values) for panels, one in zip(made, given, strict=True))
    assert [made[n].values.data_ptr() - made[0].values.data_ptr() for n in (1, 2)] == [576, 704]


def test_types_and_their_errors():
    weight = _weight(40, 64)
    assert Panels(weight.bfloat16(), "bf16").relative_error(weight.bfloat16()) == 0.0
    assert 1e-4 < Panels(weight, "fp16").relative_error(weight) < 4e-4
    int8 = Panels(weight, "int8")
    assert 4e-3 < int8.relative_error(weight) < 1e-2
    assert int8.scale is not None and torch.equal(int8.scale[0, :40], weight.abs().amax(1) / 127)
    assert (int8.dense()[0] - weight).abs().max() <= (weight.abs().amax() / 254) * 1.0001
    assert Panels(torch.zeros(4, 4), "int8").dense().abs().max() == 0
    assert [Panels(w, d).lossy(w) for w in (weight, weight.bfloat16()) for d in KINDS] == [
        False,
        True,
        True,
        True,
        False,
        False,
        True,
        True,
    ]
    with pytest.raises(ConfigError, match="'int4'"):
        Panels(weight, "int4")


@pytest.mark.skipif(native.library().library is None, reason=f"no compiled kernels: {native.library().detail}")
@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("outputs", [16, 37, 50, 200])
def test_the_kernel_multiplies_by_what_the_panels_stand_for(dtype, outputs):
    """And each row by itself, to the bit, for 1 to 19 rows."""
    panels, x = Panels(_weight(outputs, 45), dtype), _weight(19, 45)
    scale = None if panels.scale is None else panels.scale.data_ptr()
    matrix = _Matrix(panels.values.data_ptr(), scale, None, panels.kind)

    def run(rows: torch.Tensor) -> torch.Tensor:
        out = torch.empty(len(rows), outputs)
        native._call("rq_linear", rows.contiguous(), ctypes.c_void_p(ctypes.addressof(matrix)), out, len(rows), 45, outputs)
        return out

    whole = run(x)
    torch.testing.assert_close(whole, x @ panels.dense()[0].t(), atol=1e-5, rtol=1e-5)
    for count in range(1, 19):
        assert torch.equal(run(x[:count]), whole[:count])
        assert torch.equal(run(x[19 - count :]), whole[19 - count :])


@pytest.mark.skipif(not most_rounded(), reason="this machine multiplies no bytes, or there is no compiler")
@pytest.mark.parametrize(("outputs", "inputs"), [(50, 45), (16, 64), (200, 21)])
def test_rounded_inputs(outputs, inputs):
    """The kernel's result is that of inputs rounded to 127 steps of their largest magnitude, exact but for the two scales."""
    weight, x = _weight(outputs, inputs), _weight(5, inputs)
    x[3] = 0.0
    panels = Panels(weight, "int8", rounded=True)
    assert panels.kind == 5 and torch.equal(panels.dense(), Panels(weight, "int8").dense())
    matrix = _Matrix(panels.values.data_ptr(), panels.scale.data_ptr(), panels.shift.data_ptr(), panels.kind)
    out = torch.empty(5, outputs)
    native._call("rq_linear", x, ctypes.c_void_p(ctypes.addressof(matrix)), out, 5, inputs, outputs)
    step = x.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
    want = ((x / step).round() * step).double() @ panels.dense()[0].double().t()
    torch.testing.assert_close(out.double(), want, atol=2e-5 + float(step.max()) * 0.03, rtol=1e-5)
