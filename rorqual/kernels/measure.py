"""Measured ceilings of this machine: FP32 GEMM rate and memory read rate, to state speeds as shares of."""

from __future__ import annotations

import time

import torch


def _best_seconds(call, seconds: float) -> float:  # type: ignore[no-untyped-def]
    call()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= end:
            return best


def gemm_gflops(seconds: float = 1.0, size: int = 2048) -> float:
    """Best FP32 rate of a size^3 matrix product over `seconds`, in GFLOP/s: the ceiling that training is compared with."""
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    return 2 * size**3 / _best_seconds(lambda: torch.mm(a, b, out=out), seconds) / 1e9


def memory_gbps(seconds: float = 0.5, mebibytes: int = 256) -> float:
    """Best rate of reading a block far larger than the caches, in GB/s."""
    block = torch.ones(mebibytes << 18)
    return block.numel() * 4 / _best_seconds(lambda: block.sum(), seconds) / 1e9
