"""Training state on disk: saved and read through torch.distributed.checkpoint, one process included (design section 4).

    tensors = resume.logical_tensors(model) | resume.split_experts({f"optimizer.exp_avg.{name}": m for name, m in moments})
    resume.save(resume.step_folder(root, step), tensors, {"step": step, "tokens": tokens, ...})
    resume.prune(root, keep=3)
    ...
    state = resume.load(resume.latest(root), tensors)      # fills the tensors in place

Tensors are keyed by what they are (global layer, global expert), never by rank, and all else is JSON. A checkpoint appears
whole or not at all: whatever happens while one is written, the earlier ones stay as they are.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from rorqual.checkpoint.folder import abandon, explained, temporary
from rorqual.checkpoint.logical import logical_tensors, split_experts
from rorqual.checkpoint.storage import INDEX_NAME, SafetensorsReader, SafetensorsWriter, StrictLoadPlanner, read_index
from rorqual.errors import CheckpointError

__all__ = ["async_save", "latest", "load", "logical_tensors", "prune", "read_state", "save", "split_experts", "step_folder", "steps"]

_STEP = re.compile(r"step-(\d{8,})")
_LEFT = re.compile(r"\.step-(\d{8,})\.(?:partial|replaced)")


def step_folder(root: Path, step: int) -> Path:
    """`root/step-00000100`."""
    return root / f"step-{step:08d}"


def steps(root: Path) -> list[int]:
    """Steps of the whole checkpoints under `root`, ascending; half-written ones have another name and do not count."""
    if not root.is_dir():
        return []
    found = (_STEP.fullmatch(path.name) for path in root.iterdir() if (path / INDEX_NAME).is_file())
    return sorted(int(match[1]) for match in found if match)


def latest(root: Path) -> Path | None:
    """The checkpoint of the highest step under `root`, or None."""
    found = steps(root)
    return step_folder(root, found[-1]) if found else None


def prune(root: Path, keep: int) -> list[Path]:
    """Deletes all but the `keep` newest checkpoints and what killed writers left of older steps; returns what was deleted.

    A half-written folder of a later step is not touched: a save in the background may be writing it, and the next save of
    that step replaces it.
    """
    if keep < 1:
        raise CheckpointError(f"keep ({keep}) must be at least 1: the newest checkpoint is what a run resumes from")
    found = steps(root)
    old = [step_folder(root, step) for step in found[:-keep]]
    named = ((_LEFT.fullmatch(path.name), path) for path in (root.iterdir() if found else ()))
    left = [path for match, path in named if match and int(match[1]) <= found[-1]]
    for folder in left:
        shutil.rmtree(folder)
    for folder in old:
        # renamed first, so that a kill half-way leaves nothing that looks whole, and the next call finds the rest
        shutil.rmtree(folder.rename(temporary(folder)))
    return old + left


def save(
    folder: Path,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    *,
    replace: bool = False,
    process_group: dist.ProcessGroup | None = None,
) -> Path:
    """Writes one checkpoint and returns its folder, synced to the disk.

    `tensors` may be views, of any dtype that safetensors has, on any device, DTensors included; `state` must be what JSON gives back unchanged.
    With several ranks every rank calls it, each with the tensors that it holds and the same state; replicated ones are written once.
    A folder that exists is refused unless `replace`. A full disk or any other failure raises CheckpointError on every rank and leaves earlier checkpoints alone.
    """
    _check_json(state, "state")
    final = Path(folder).absolute()
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        with explained(final), _one_process_is_fine():
            dcp.save(dict(tensors), storage_writer=SafetensorsWriter(final, state, replace), planner=planner, process_group=process_group)
    except CheckpointException as failure:
        _clean_up(final, process_group)
        raise _cause(failure, final) from failure
    except BaseException:
        _clean_up(final, process_group)
        raise
    return final


def async_save(
    folder: Path,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    *,
    replace: bool = False,
    process_group: dist.ProcessGroup | None = None,
) -> Future[Path]:
    """`save` on a thread of its own: the tensors are copied before this returns, so training may go on at once.

    `result()` of the future gives the folder or raises what `save` raises; ask it before the next save. Several ranks need a
    `process_group` with a CPU backend that nothing else uses meanwhile. Costs a second copy of the tensors in memory.
    """
    _check_json(state, "state")
    copied = _copied(tensors)
    executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
    future = executor.submit(save, folder, copied, dict(state), replace=replace, process_group=process_group)
    executor.shutdown(wait=False)
    return future


def load(
    folder: Path, tensors: Mapping[str, Tensor], *, partial: bool = False, process_group: dist.ProcessGroup | None = None
) -> dict[str, Any]:
    """Fills `tensors` in place from a checkpoint, whatever layout wrote it, and returns the state.

    Every name must be there with the same shape and dtype. Names that the checkpoint has beyond these are an error
    (something would be lost) unless `partial`. Structure is verified before a byte is written; when a checksum fails after that,
    CheckpointError names the file and the tensors are not to be used.
    """
    reader = SafetensorsReader(Path(folder))
    planner = StrictLoadPlanner(Path(folder), partial)
    try:
        with _one_process_is_fine():
            dcp.load(dict(tensors), storage_reader=reader, planner=planner, process_group=process_group)
    except CheckpointException as failure:
        raise _cause(failure, Path(folder)) from failure
    return reader.state


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU. Each storage is copied once: thousands of expert views share a few stacks."""
    stacks: dict[tuple[torch.device, int], torch.UntypedStorage] = {}
    copied: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            copied[name] = tensor.detach().clone()
            continue
        storage = tensor.untyped_storage()
        key = tensor.device, storage.data_ptr()
        if key not in stacks:
            stacks[key] = storage.clone() if tensor.device.type == "cpu" else storage.cpu()
        copied[name] = torch.empty(0, dtype=tensor.dtype).set_(stacks[key], tensor.storage_offset(), tensor.shape, tensor.stride())
    return copied


def read_state(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint without its tensors."""
    return read_index(Path(folder))["state"]  # type: ignore[no-any-return]


def _check_json(value: Any, where: str) -> None:
    """Refuses what JSON would change silently: keys that are not strings, tensors, arrays, tuples."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise CheckpointError(f"{where} has the key {key!r}; keys must be strings, or JSON changes them")
            _check_json(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_json(inner, f"{where}[{index}]")
    elif value is not None and type(value) not in (bool, int, float, str):
        raise CheckpointError(
            f"{where} is a {type(value).__name__}; only numbers, strings, lists and mappings are kept, tensors go into `tensors`"
        )


@contextmanager
def _one_process_is_fine() -> Iterator[None]:
    """torch warns when there is no process group; a single process is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _clean_up(final: Path, process_group: dist.ProcessGroup | None) -> None:
    if not dist.is_initialized() or dist.get_rank(process_group) == 0:
        abandon(final)


def _cause(failure: CheckpointException, folder: Path) -> BaseException:
    """The first rank's own exception, as an error of ours where it is one of the system's."""
    rank, (error, _) = sorted(failure.failures.items())[0]
    if isinstance(error, CheckpointError) or not isinstance(error, Exception):
        return error
    if isinstance(error, OSError):
        try:
            with explained(folder):
                raise error
        except CheckpointError as explanation:
            return explanation
    return CheckpointError(f"{folder}: rank {rank} failed: {error!r}")
