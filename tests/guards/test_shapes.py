"""The check of shapes itself: a wrong shape is an error that names function, argument and both shapes."""

from __future__ import annotations

import pytest
import torch

from rorqual.kernels import reference
from tests import shapes

pytestmark = pytest.mark.skipif("config.getoption('--no-shapes')", reason="shape checks are switched off")


def test_the_package_is_wrapped():
    with pytest.raises(shapes.ShapeError, match=r"rms_norm: weight is torch.float32 \[4\]; the signature says .*m"):
        reference.rms_norm(torch.ones(2, 3), torch.ones(4), 1e-6)


def test_a_wrong_type_of_number_is_a_wrong_tensor():
    with pytest.raises(shapes.ShapeError, match=r"weight is torch.int64 \[3\]"):
        reference.rms_norm(torch.ones(2, 3), torch.ones(3, dtype=torch.int64), 1e-6)


def test_a_test_checks_the_first_calls_and_not_the_rest():
    for _ in range(shapes.CALLS):
        reference.rms_norm(torch.ones(2, 3), torch.ones(3), 1e-6)
    assert reference.rms_norm(torch.ones(2, 3), torch.ones(1), 1e-6).shape == (2, 3)


def test_results_and_containers_are_checked():
    from jaxtyping import Float
    from torch import Tensor

    def halves(x: Float[Tensor, "n m"], mask: Float[Tensor, " n"] | None = None) -> tuple[Float[Tensor, "n h"], Float[Tensor, "n h"]]:
        return x[:, :1], x

    halves.__annotations__ = {"x": Float[Tensor, "n m"], "mask": Float[Tensor, " n"] | None,
                              "return": tuple[Float[Tensor, "n h"], Float[Tensor, "n h"]]}  # fmt: skip
    wrapped = shapes.checked(halves, shapes.Checks())
    assert [part.shape[1] for part in wrapped(torch.ones(2, 1), torch.ones(2))] == [1, 1]
    with pytest.raises(shapes.ShapeError, match=r"result is \(torch.float32 \[2, 1\], torch.float32 \[2, 3\]\)"):
        wrapped(torch.ones(2, 3))
    with pytest.raises(shapes.ShapeError, match="mask is"):
        wrapped(torch.ones(2, 1), torch.ones(3))


def test_functions_without_shapes_are_left_alone():
    def plain(x: int) -> int:
        return x

    assert shapes.checked(plain, shapes.Checks()) is plain
