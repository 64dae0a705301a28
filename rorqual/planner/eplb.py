"""Expert load balancing: which experts get redundant copies, and where every copy lives (report section 3.4, EPLB).

Copies go to the experts with the largest load per copy; a greedy packing then fills places of equal size, heaviest load first.
With groups that divide evenly over the nodes the placement is hierarchical: groups to nodes, copies within a node, copies to
its GPUs, so that a token's experts stay on few nodes. Otherwise all GPUs are treated as one node with one group. Loads are
counts of tokens per expert; any non-negative numbers will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rorqual.errors import ConfigError


@dataclass(frozen=True)
class Placement:
    """Where the copies of one layer's experts are. Places are numbered GPU by GPU, `num_places / num_gpus` on each."""

    logical: tuple[int, ...]
    """Expert at each place."""
    copies: tuple[int, ...]
    """Number of copies of each expert."""
    num_gpus: int

    @property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """The places of each expert, in order of its copies' places."""
        table: list[list[int]] = [[] for _ in self.copies]
        for place, expert in enumerate(self.logical):
            table[expert].append(place)
        return tuple(tuple(row) for row in table)

    def gpu_loads(self, load: Sequence[float]) -> tuple[float, ...]:
        """Load of each GPU when every expert's load is shared evenly by its copies."""
        size = len(self.logical) // self.num_gpus
        share = [load[expert] / self.copies[expert] for expert in self.logical]
        return tuple(sum(share[gpu * size : (gpu + 1) * size]) for gpu in range(self.num_gpus))

    def imbalance(self, load: Sequence[float]) -> float:
        """Largest GPU load over the mean; 1 is perfect, and what every other GPU waits for."""
        loads = self.gpu_loads(load)
        return max(loads) * len(loads) / sum(loads) if sum(loads) else 1.0


def place_experts(
    loads: Sequence[Sequence[float]], num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> tuple[Placement, ...]:
    """One placement for each row of `loads` [layers][experts]; `num_replicas` places in all, redundant ones included.

    ConfigError names the numbers that do not divide.
    """
    if not loads or not loads[0] or any(len(row) != len(loads[0]) for row in loads):
        raise ConfigError("loads must have at least one layer, and the same number of experts in each")
    if any(not 0 <= value < float("inf") for row in loads for value in row):
        raise ConfigError("loads must be finite numbers of 0 or more")
    experts = len(loads[0])
    for name, value in (("num_replicas", num_replicas), ("num_groups", num_groups), ("num_nodes", num_nodes), ("num_gpus", num_gpus)):
        if value < 1:
            raise ConfigError(f"{name} ({value}) must be at least 1")
    if num_replicas < experts:
        raise ConfigError(f"num_replicas ({num_replicas}) must be at least the number of experts ({experts}): each needs one place")
    for what, whole, part_name, part in (
        ("num_replicas", num_replicas, "num_gpus", num_gpus), ("num_gpus", num_gpus, "num_nodes", num_nodes), ("the number of experts", experts, "num_groups", num_groups),
    ):  # fmt: skip
        if whole % part:
            raise ConfigError(f"{what} ({whole}) must be divisible by {part_name} ({part}); use {whole - whole % part + part}")
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    return tuple(_place(list(map(float, row)), num_replicas, num_groups, num_nodes, num_gpus) for row in loads)


def _place(load: list[float], num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int) -> Placement:
    size = len(load) // num_groups
    groups = [sum(load[group * size : (group + 1) * size]) for group in range(num_groups)]
    logical: list[int] = []
    for node in pack(groups, num_nodes):
        members = [group * size + index for group in node for index in range(size)]
        own = [load[expert] for expert in members]
        copied, counts = replicate(own, num_replicas // num_nodes)
        share = [own[index] / counts[index] for index in copied]
        for gpu in pack(share, num_gpus // num_nodes):
            logical += [members[copied[place]] for place in gpu]
    copies = [0] * len(load)
    for expert in logical:
        copies[expert] += 1
    return Placement(tuple(logical), tuple(copies), num_gpus)


def pack(weights: Sequence[float], num_packs: int) -> list[list[int]]:
    """Items in packs of equal count: heaviest first, each into the lightest pack that has room, the first of equal ones.

    With one item a pack, items stay in order. The count must divide.
    """
    capacity = len(weights) // num_packs
    if capacity == 1:
        return [[item] for item in range(num_packs)]
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    filled = [0.0] * num_packs
    for item in sorted(range(len(weights)), key=lambda item: -weights[item]):
        lightest = min((index for index in range(num_packs) if len(packs[index]) < capacity), key=lambda index: filled[index])
        packs[lightest].append(item)
        filled[lightest] += weights[item]
    return packs


def replicate(load: Sequence[float], num_places: int) -> tuple[list[int], list[int]]:
    """(expert of each place, copies of each expert): one each, then a copy at a time to the largest load per copy."""
    logical, counts = list(range(len(load))), [1] * len(load)
    while len(logical) < num_places:
        heaviest = max(range(len(load)), key=lambda expert: load[expert] / counts[expert])
        logical.append(heaviest)
        counts[heaviest] += 1
    return logical, counts
