"""What `make demo` would take on two slower cores: the stages of a finished run, scaled by the rate of matrix products.

    make demo && python benchmarks/slow_cores.py --run runs/laptop --gflops 55

It starts itself again with torch, MKL and oneDNN held to AVX2 and our own kernels compiled for it, measures the ceiling and the seconds
of a pre-training step of the recipe and the microseconds of a decode step of `nano` both ways, and prints one JSON line each. `demo_seconds_scaled` is an
estimate, not a measurement: every stage of the run, building the data and post-training included, takes as many times longer as the
run's own ceiling (its FLOP per token x tokens/s / share of the ceiling) is above --gflops. Memory is not slower by as much, so that
what waits for it is estimated too high.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rorqual.kernels import build

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def step_seconds(steps: int) -> tuple[float, float, int]:
    """(best seconds of an optimiser step of the recipe's pre-training, ceiling in GFLOP/s, tokens of the step)."""
    import torch

    from rorqual.kernels import memory
    from rorqual.kernels.measure import gemm_gflops
    from rorqual.recipes.laptop import laptop
    from rorqual.train.state import build as build_state
    from rorqual.train.trainer import Batch, train_step

    memory.keep_freed()
    run = laptop()
    state = build_state(run, torch.device("cpu"), torch.float32)
    count, length = run.train.micro_batch_sequences, run.train.sequence_length
    best, ceiling = float("inf"), gemm_gflops(1.0)
    for _ in range(steps):
        ids = torch.randint(0, run.model.vocab_size, (count, length + 1))
        start = time.perf_counter()
        train_step(state.model, state.optimizer, Batch(ids[:, :-1], ids[:, 1:]), micro_batch=count, learning_rate=1e-4,
                   bias_update_speed=1e-3, mtp_loss_weight=0.3, aux_loss_alpha=1e-4)  # fmt: skip
        best = min(best, time.perf_counter() - start)
    return best, max(ceiling, gemm_gflops(1.0)), count * length


def lesser_compiler(folder: Path) -> dict[str, str]:
    """The environment in which our kernels are compiled for AVX2, into a cache of their own; as it is where there is no compiler."""
    path = build.compiler()
    if path is None:
        return {}
    (folder / "c++").write_text(f'#!/usr/bin/env bash\nexec {path} "${{@/-march=native/-march=x86-64-v3}}"\n')
    (folder / "c++").chmod(0o755)
    return {"CXX": str(folder / "c++"), "RORQUAL_CACHE": str(folder / "cache")}


def main() -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run of `rorqual run laptop`, whose stages are scaled")
    parser.add_argument("--gflops", type=float, default=55.0, help="FP32 ceiling of the slower machine, all cores")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(step_seconds(args.steps)))
        return
    from common import emit

    for isa in ("as it is", "AVX2"):
        command = [sys.executable, __file__, "--measure", "--steps", str(args.steps)]
        with tempfile.TemporaryDirectory() as folder:
            environment = {} if isa == "as it is" else {**AVX2, **lesser_compiler(Path(folder))}
            done, decoded = (
                subprocess.run(one, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
                for one in (command, [sys.executable, str(Path(__file__).with_name("decode.py")), "--configs", "nano", "--rows", "1,16"])
            )
        seconds, ceiling, tokens = json.loads(done.stdout)
        emit("pretrain_step_ms", seconds * 1e3, None, None, held_to=isa, gemm_gflops=ceiling, tokens=tokens,
             scaled_ms=seconds * 1e3 * ceiling / args.gflops, scaled_to_gflops=args.gflops)  # fmt: skip
        for line in decoded.stdout.splitlines():
            print(json.dumps({**json.loads(line), "held_to": isa}), flush=True)
    if args.run:
        results = json.loads((args.run / "results.json").read_text())
        ceiling = results["train_flops"] / results["tokens"] * results["tokens_per_second"] / results["share_of_ceiling"] / 1e9
        ratio = ceiling / args.gflops
        stages = {stage["name"]: stage["seconds"] for stage in results["stages"]}
        emit("demo_seconds_scaled", sum(stages.values()) * ratio, sum(stages.values()), ratio, peer_name="the run as it was", gemm_gflops=ceiling,
             **{f"{name}_scaled": seconds * ratio for name, seconds in stages.items()}, scaled_to_gflops=args.gflops)  # fmt: skip


if __name__ == "__main__":
    main()
