"""The GPU's decode step over the Triton kernels, run by test_gpu.py in a process whose Triton interprets: few rows, the kernels' own widths."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from rorqual.kernels import triton_rows
from tests.inference.models import build
from tests.inference.test_eager import SHAPES
from tests.inference.test_gpu import compare, rows_are_their_own


@pytest.mark.parametrize("name", ["T0", "V2-Lite's kind"])
@torch.no_grad()
def test_states_logits_experts_and_modules_are_the_models(name: str) -> None:
    compare(build(**{**SHAPES[name], "num_hidden_layers": 2}), triton_rows, 1e-4, 5)


@torch.no_grad()
def test_bf16_weights() -> None:
    """Against the same model's modules in BF16, which round elsewhere."""
    model = build(n_routed_experts=0, num_nextn_predict_layers=0, num_hidden_layers=2).bfloat16()
    compare(model, triton_rows, 6e-2, 5)


@torch.no_grad()
def test_padding_and_neighbours_change_no_bit() -> None:
    rows_are_their_own(build(num_hidden_layers=2), triton_rows)
