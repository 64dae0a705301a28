"""Sampled and judged groups that wait for their optimiser step, and how they survive an interruption to the bit.

A checkpoint that falls between two steps of one rollout keeps the groups that are not trained on yet, with ids, the engine's and the
trainer's log-probabilities, experts, kept sets, rewards and advantages. Tensors of all answers lie one after the other; lengths are JSON.
Shape letters: q group, g answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rorqual.posttrain.policy import Kept
from rorqual.posttrain.rollout import Answer


@dataclass(frozen=True, eq=False)
class Group:
    """The answers to problem number `problem` of the run's order. `rewards` are NaN where not judged; `old` is log pi_old per token of
    each answer, None while the step's own forward pass is to give it. `dropped`: left out of every count."""

    problem: int
    answers: list[Answer]
    rewards: Float[Tensor, " g"]
    advantages: Float[Tensor, " g"]
    signal: bool
    dropped: bool = False
    old: list[Tensor] | None = None


def pack(groups: Sequence[Group]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors by name, JSON) of groups; texts are left out, because what they were good for is done."""
    answers = [answer for group in groups for answer in group.answers]
    tensors: dict[str, Tensor] = {}
    state: dict[str, Any] = {
        "problems": [g.problem for g in groups], "sizes": [len(g.answers) for g in groups], "signal": [g.signal for g in groups],
        "dropped": [g.dropped for g in groups], "prompts": [len(a.prompt) for a in answers], "answers": [len(a.ids) for a in answers],
        "cut": [a.cut for a in answers],
    }  # fmt: skip
    if not groups:
        return tensors, state
    tensors["tokens"] = torch.tensor([token for a in answers for token in (*a.prompt, *a.ids)], dtype=torch.int64)
    tensors["rewards"] = torch.cat([g.rewards for g in groups])
    tensors["advantages"] = torch.cat([g.advantages for g in groups])
    optional: dict[str, list[Tensor | None]] = {
        "logprobs": [a.logprobs for a in answers], "routes": [a.routes for a in answers],
        "kept_ids": [a.kept.ids if a.kept else None for a in answers], "kept_offsets": [a.kept.offsets if a.kept else None for a in answers],
        "old": [one for g in groups for one in (g.old or [None] * len(g.answers))],  # type: ignore[list-item]
    }  # fmt: skip
    for name, parts in optional.items():
        present = [part for part in parts if part is not None]
        if len(present) == len(parts):
            tensors[name] = torch.cat(present)
    if "kept_ids" in tensors:
        state["kept"] = [len(a.kept.ids) for a in answers if a.kept]
    state["shapes"] = {name: [str(t.dtype).removeprefix("torch."), *t.shape] for name, t in tensors.items()}
    return tensors, state


def room_for(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Empty tensors of the shapes that `pack` wrote down, to be filled by a checkpoint's reader."""
    return {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, (dtype, *shape) in state.get("shapes", {}).items()}


def unpack(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> list[Group]:
    """The groups that `pack` took apart."""
    if not state["problems"]:
        return []
    lengths = [p + a for p, a in zip(state["prompts"], state["answers"], strict=True)]
    tokens = [part.tolist() for part in tensors["tokens"].split(lengths)]

    def split(name: str, sizes: Sequence[int]) -> Sequence[Tensor | None]:
        return [part.clone() for part in tensors[name].split(list(sizes))] if name in tensors else [None] * len(sizes)

    logprobs, old = split("logprobs", state["answers"]), split("old", state["answers"])
    routes = split("routes", [length - 1 for length in lengths])
    ids, offsets = split("kept_ids", state.get("kept", [0] * len(lengths))), split("kept_offsets", [n + 1 for n in state["answers"]])
    answers = [
        Answer(one[:prompt], one[prompt:], cut, logprobs=logprob, routes=route, kept=None if i is None or o is None else Kept(i, o))
        for one, prompt, cut, logprob, route, i, o in zip(
            tokens, state["prompts"], state["cut"], logprobs, routes, ids, offsets, strict=True
        )
    ]
    groups, first = [], 0
    for number, size in enumerate(state["sizes"]):
        part = slice(first, first + size)
        olds = [one for one in old[part] if one is not None]
        groups.append(
            Group(
                state["problems"][number], answers[part], tensors["rewards"][part].clone(), tensors["advantages"][part].clone(),
                state["signal"][number], state["dropped"][number], olds or None,
            )
        )  # fmt: skip
        first += size
    return groups
