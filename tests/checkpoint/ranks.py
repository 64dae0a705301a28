"""The ranks of the tests with several processes: `python -m tests.checkpoint.ranks WORLD FOLDER` imports once and forks them."""

from __future__ import annotations

import datetime
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor

from rorqual.checkpoint import resume
from rorqual.checkpoint.storage import SafetensorsWriter
from rorqual.errors import CheckpointError


def stacks(experts: range) -> dict[str, torch.Tensor]:
    """Stacked experts, each filled with its own global number, so that a mix-up has a name."""
    return {
        "model.layers.1.mlp.experts.gate_up_proj.weight": torch.stack([torch.full((4, 3), float(e)) for e in experts]),
        "optimizer.exp_avg.model.layers.1.mlp.experts.down_proj.weight": torch.stack(
            [torch.full((3, 2), 100.0 + e).bfloat16() for e in experts]
        ),
    }


def sharded() -> torch.Tensor:
    """What all ranks hold a piece of: seven rows do not divide by two."""
    return torch.arange(21.0).view(7, 3)


def main(rank: int, world: int, folder: Path) -> None:
    """Reads step 1, which one process wrote; loses a tensor of it; fails to write step 2; writes step 3."""
    timeout = datetime.timedelta(seconds=30)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world, timeout=timeout)
    mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
    mine = range(rank * 8 // world, (rank + 1) * 8 // world)
    tensors: dict[str, torch.Tensor] = resume.split_experts(stacks(mine), first_expert=mine.start)
    tensors["shared"] = torch.arange(5.0)
    tensors["rows"] = distribute_tensor(sharded(), mesh, [Shard(0)])
    target = {name: torch.full_like(value, -1.0) for name, value in tensors.items()}
    assert resume.load(folder / "step-00000001", target) == {"step": 1}
    for name, value in tensors.items():
        assert torch.equal(target[name].full_tensor(), value.full_tensor()) if name == "rows" else torch.equal(target[name], value), name
    few = {name: value for name, value in target.items() if ".experts.7." not in name}
    refused("experts.7.", lambda: resume.load(folder / "step-00000001", few))
    write_data = SafetensorsWriter.write_data
    if rank == 1:
        SafetensorsWriter.write_data = full  # type: ignore[method-assign]
    refused(
        "No space left on device; nothing of that name was changed", lambda: resume.save(folder / "step-00000002", tensors, {"step": 2})
    )
    SafetensorsWriter.write_data = write_data  # type: ignore[method-assign]
    resume.save(folder / "step-00000003", tensors, {"step": 3})
    dist.barrier()
    dist.destroy_process_group()


def full(*_: object) -> None:
    """A disk that is full on one machine only."""
    raise OSError(28, "No space left on device")


def refused(text: str, action: Callable[[], object]) -> None:
    """Asserts that this rank gets a CheckpointError with `text` in it."""
    try:
        action()
    except CheckpointError as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"no error with {text!r}")


if __name__ == "__main__":
    world, fork = int(sys.argv[1]), multiprocessing.get_context("fork")
    ranks = [fork.Process(target=main, args=(rank, world, Path(sys.argv[2]))) for rank in range(world)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    sys.exit(any(rank.exitcode for rank in ranks))
