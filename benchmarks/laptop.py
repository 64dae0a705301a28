"""Post-training of a finished `laptop` run again under other seeds: accuracy after SFT and after GRPO, and what reward alone brought.

    rorqual run laptop && python benchmarks/laptop.py --run runs/laptop --seeds 0,1,2

Slow: two to ten minutes a seed. One JSON line a seed (`grpo_gain`: value in points, `sft`, `grpo` with standard errors, greedy ones beside
them), then their mean. Nothing in the run folder changes.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import common

from rorqual.cli.post_training import PostStages
from rorqual.recipes.post_training import require


def main() -> int:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/laptop"), help="a run whose pre-training is finished")
    parser.add_argument("--seeds", default="0,1,2")
    args = parser.parse_args()
    gains = []
    for seed in map(int, args.seeds.split(",")):
        with tempfile.TemporaryDirectory() as made:
            out = Path(made) / "run"
            shutil.copytree(args.run / "hf", out / "hf")
            shutil.copyfile(out / "hf" / "config.json", out / "config.json")
            seconds: dict[str, float] = {}

            @contextlib.contextmanager
            def stage(name: str, seconds: dict[str, float] = seconds) -> Iterator[None]:
                began = time.monotonic()
                yield
                seconds[name] = time.monotonic() - began

            stages = PostStages(require("laptop").placed(out, seed), out)
            if stages.train(stage) is not None:
                return 1
            found = stages.accuracy()
        gains.append(100 * (found["accuracy_grpo"] - found["accuracy_sft"]))
        figures = {
            f"{name}{end}": found[f"accuracy_{name}{end}"]
            for name in ("sft", "grpo")
            for end in ("", "_stderr", "_greedy", "_greedy_stderr")
        }
        common.emit(
            "grpo_gain", gains[-1], None, None, seed=seed, **figures, **{f"{name}_seconds": value for name, value in seconds.items()}
        )
    common.emit("grpo_gain_mean", fmean(gains), None, None, seeds=args.seeds, least=min(gains))
    return 0


if __name__ == "__main__":
    sys.exit(main())
