"""What a verb says about memory before it allocates: the planner's estimate, and a refusal of what cannot fit.

memory_check.add_option(parser)                                     # --ignore-memory
memory_check.check_memory(estimate, memory_check.available_memory(device), force=args.ignore_memory)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rorqual.errors import DeviceError
from rorqual.html.numbers import size

if TYPE_CHECKING:
    from rorqual.config import ModelConfig
    from rorqual.planner.estimate import Estimate
    from rorqual.train.hyperparams import RunConfig

OPTION = "--ignore-memory"


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds --ignore-memory."""
    parser.add_argument(OPTION, action="store_true", help="start even where the estimate says that the memory is too small")


def available_memory(device: str = "cpu") -> int | None:
    """Bytes that can still be allocated on a device ("auto", "cpu", "cuda", "cuda:0", "mps"); None where nobody says.

    On the CPU the system's free memory, or what the process's control group leaves where that is less. Imports torch for CUDA only.
    """
    if device == "auto" or device.startswith("cuda"):
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.mem_get_info(torch.device("cuda" if device == "auto" else device))[0])
    from rorqual.kernels.memory import available_bytes

    found = [limit for limit in (available_bytes(), _group_bytes()) if limit is not None]
    return min(found, default=None)


def check_memory(estimate: Estimate, available: float | None, force: bool = False) -> None:
    """Prints the estimate on standard error; DeviceError where it exceeds what is available, unless `force`."""
    largest = sorted(estimate.parts.items(), key=lambda part: -part[1])
    listed = ", ".join(f"{name.replace('_', ' ')} {size(value)}" for name, value in largest)
    free = "" if available is None else f"; {size(available)} are free"
    print(f"memory for {estimate.what}: about {size(estimate.total)} ({listed}){free}", file=sys.stderr)
    if available is None or estimate.total <= available or force:
        return
    raise DeviceError(
        f"{estimate.what} needs about {size(estimate.total)} of memory and {size(available)} are free; the largest part is {largest[0][0].replace('_', ' ')} "
        f"({size(largest[0][1])}): {_advice(largest[0][0])}, or start anyway with {OPTION}"
    )


def check_run(run: RunConfig, force: bool = False) -> None:
    """The check for pre-training as `run` says, on the device that the trainer will choose."""
    from rorqual.kernels import native
    from rorqual.planner.estimate import training_estimate
    from rorqual.train.state import choose_device

    device, dtype = choose_device(run.train)
    config, on_cpu = run.train, device.type == "cpu"
    estimate = training_estimate(
        run.model, micro_batch=min(config.micro_batch_sequences, config.batch.end), length=config.sequence_length, batch=config.batch.end,
        dtype="fp32" if str(dtype) == "torch.float32" else "bf16", compiled=on_cpu and native.library().library is not None, foreach=not on_cpu,
        moments=config.optimizer.moments, recompute=config.recompute, ema=on_cpu and config.ema_decay is not None,
        mtp=max(config.mtp_loss_weight.initial, config.mtp_loss_weight.final) > 0, what=f"training on {device}",
    )  # fmt: skip
    check_memory(estimate, available_memory(str(device)), force)


def check_folder(
    folder: Path, weights: str | None = None, *, sequences: int, batched_tokens: int, cache_bytes: float | None = None, drafts: int | None = None,
    force: bool = False, device: str = "cpu",
) -> None:  # fmt: skip
    """The check for serving a run or a model folder on this machine, before it is read. A folder without a config.json is left to the loader.

    weights: as the user chose, else what the loader would choose for the device. drafts: MTP modules that draft, None for one where there are any.
    """
    found = _serving(folder, weights or (None if device == "cpu" else "bf16"), sequences, batched_tokens, cache_bytes, drafts)
    if found is not None and device != "cpu":
        check_memory(found[1], available_memory(device), force)
    elif found is not None:
        check_either(*found, available_memory("cpu"), force)


def check_models(folders: Sequence[Path], what: str, *, weights: str | None = None, sequences: int = 64, force: bool = False) -> None:
    """The check for several models that one process has at the same time, each over an engine with its own settings for the rest."""
    found = [one for folder in folders if (one := _serving(folder, weights, sequences, 512, None, 0)) is not None]
    if not found:
        return
    full, lean = (_together(what, list(estimates)) for estimates in zip(*found, strict=True))
    check_either(full, lean, available_memory("cpu"), force)


def beside(estimate: Estimate, name: str, folder: Path) -> Estimate:
    """An estimate with one more part, the engine over another model's folder; as it is where there is none."""
    found = _serving(folder, "fp32", 64, 512, None, 0)
    return estimate if found is None else with_part(estimate, name, found[1].tensors)


def with_part(estimate: Estimate, name: str, size: float) -> Estimate:
    """An estimate with one more part; as it is for a part of nothing."""
    from rorqual.planner.estimate import Estimate

    return Estimate(estimate.what, {**estimate.parts, name: size}) if size else estimate


def _together(what: str, estimates: Sequence[Estimate]) -> Estimate:
    """All parts of some estimates, summed by name."""
    from rorqual.planner.estimate import Estimate

    parts: dict[str, float] = {}
    for one in estimates:
        for name, value in one.parts.items():
            parts[name] = parts.get(name, 0.0) + value
    return Estimate(what, parts)


def check_either(full: Estimate, lean: Estimate, available: float | None, force: bool = False) -> None:
    """Without room for its copies of the weights the compiled step stays out, and the lean estimate counts."""
    check_memory(full if available is None or full.total <= available else lean, available, force)


def _serving(
    folder: Path, weights: str | None, sequences: int, batched_tokens: int, cache_bytes: float | None, drafts: int | None
) -> tuple[Estimate, Estimate] | None:
    """The estimate with and without the compiled step's copies of the weights; None for a folder without a config.json."""
    from rorqual.cli.model_folder import fitting_weights
    from rorqual.planner.estimate import serving_estimate
    from rorqual.posttrain.folder import adapter_base

    while (base := adapter_base(folder)) is not None:  # an adapter may stand over another
        folder = base
    exported = folder / "hf"
    origin = exported if (exported / "config.json").is_file() else folder
    if not (origin / "config.json").is_file():
        return None
    is_run = origin is folder and ((folder / "checkpoints").is_dir() or (folder / "lineage.json").is_file())
    config = _run_model(folder) if is_run else _folder_model(origin)
    chosen = weights or ("fp32" if is_run else fitting_weights(origin)[0])
    full, lean = (
        serving_estimate(
            config, weights=chosen, cache_bytes=cache_bytes, sequences=sequences, batched_tokens=batched_tokens, drafts=drafts, panels=panels
        )
        for panels in (True, False)
    )  # fmt: skip
    return full, lean


def _run_model(run: Path) -> ModelConfig:
    from rorqual.train.rundir import read_config

    return read_config(run).model


def _folder_model(folder: Path) -> ModelConfig:
    from rorqual.config import ModelConfig

    return ModelConfig.from_file(folder)


def _advice(part: str) -> str:
    return {
        "activations": "use a smaller micro-batch or shorter sequences, or recompute more",
        "logits": "use a smaller micro-batch or shorter sequences",
        "cache": "give the cache less",
        "moments": "keep the moments in BF16, or use a smaller model",
        "weights": "keep the weights in BF16 or FP8 where that is offered, or use a smaller model",
    }.get(part, "use a smaller model or a larger machine")


def _group_bytes() -> int | None:
    """What the control group of this process leaves (version 2), None without a limit; cached files count as free."""
    root = Path("/sys/fs/cgroup")
    try:
        limit, used = ((root / name).read_text().strip() for name in ("memory.max", "memory.current"))
        files = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())["file"]
        return None if limit == "max" else max(0, int(limit) - int(used) + int(files))
    except (OSError, ValueError, KeyError):
        return None
