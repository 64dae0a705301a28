"""The measured ceilings are rates of this machine: positive, and the product's flops per second."""

from __future__ import annotations

from rorqual.kernels.measure import gemm_gflops, memory_gbps


def test_rates_are_plausible() -> None:
    assert 0.1 < gemm_gflops(0.02, size=256) < 1e6
    assert 0.1 < memory_gbps(0.02, mebibytes=8) < 1e5
