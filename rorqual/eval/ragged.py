"""Sequences of unequal lengths as one flat list of tokens in which every common beginning stands once; nothing is padded.

GEMMs and experts run over the list, attention over the tree of its stretches (kernels/tree.py). In the last block only what is scored asks:
the other tokens give their latents there, and nothing else of theirs is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rorqual.eval.blocks import attended, fed
from rorqual.kernels.tree import Tree
from rorqual.model.block import Block
from rorqual.model.mla import MLA, AttentionContext
from rorqual.model.rope import apply_rope
from rorqual.model.transformer import CausalLM

_FEW = 4
"""Scored tokens ask alone in the last block where they are at most one in so many, and each sequence's few enough for absorbed attention."""

Span = tuple[int, int]


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:  # equal up to low, not up to high
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low


@dataclass(frozen=True)
class Ragged:
    """`ids` and `positions` of every token; `paths[i]`: where sequence i stands, as stretches (first token, tokens) in order."""

    ids: list[int]
    positions: list[int]
    paths: list[tuple[Span, ...]]
    tree: Tree

    @classmethod
    def of(cls, sequences: Sequence[list[int]]) -> Ragged:
        """The tree of sequences with at least one token each, in any order."""
        ids: list[int] = []
        positions: list[int] = []
        parts: list[tuple[Span, ...]] = []
        paths: list[tuple[Span, ...]] = [()] * len(sequences)
        before: list[int] = []
        path: tuple[Span, ...] = ()
        for number in sorted(range(len(sequences)), key=sequences.__getitem__):
            own = sequences[number]
            shared = common(before, own)
            path = _first(path, shared)
            if len(own) > shared:
                path = (*path, (len(ids), len(own) - shared))
                parts.append(path)
                ids += own[shared:]
                positions += range(shared, len(own))
            paths[number], before = path, own
        return cls(ids, positions, paths, Tree(tuple(parts)))

    def places(self, number: int, start: int, end: int) -> list[int]:
        """Where tokens start to end of a sequence stand in the list."""
        out: list[int] = []
        position = 0
        for first, count in self.paths[number]:
            low, high = max(start, position), min(end, position + count)
            out += range(first + low - position, first + high - position)
            position += count
        return out

    def states(self, model: CausalLM, scored: Sequence[Sequence[int]]) -> Tensor:
        """[places, width]: the trunk's states after the final norm at `scored`, lists of places that each lie on one sequence, in their order.

        `scored[i]` belongs to sequence i, may be empty, and ascends.
        """
        device = model.head_weight.device
        positions = torch.tensor([self.positions], device=device)
        context = model.context(positions)
        x = model.model.embed_tokens(torch.tensor([self.ids], device=device))
        *blocks, last = (block for block in model.model.layers[: model.config.num_hidden_layers] if isinstance(block, Block))
        for block in blocks:
            x = fed(block, attended(block, x, context, self.tree))
        wanted = torch.tensor([place for some in scored for place in some], device=device)
        asking = [number for number, some in enumerate(scored) if some]
        few = max(len(scored[number]) for number in asking) <= MLA.absorbed_query_rows and _FEW * len(wanted) <= len(self.ids)
        if few:
            x = self._asked(model, last, x, context, [(number, scored[number]) for number in asking])
        else:
            x = attended(last, x, context, self.tree)[:, wanted]
        return model.model.norm(fed(last, x))[0]

    def _asked(
        self, model: CausalLM, block: Block, x: Tensor, context: AttentionContext, asking: list[tuple[int, Sequence[int]]]
    ) -> Tensor:
        """The residual stream of the asking places alone after attention over the latents of all."""
        attention, device = block.self_attn, x.device
        h = block.input_layernorm(x)
        c_kv, k_rope = attention.kv_a_proj_with_mqa(h).split([attention.kv_lora_rank, attention.rope], dim=-1)
        k_rope = apply_rope(k_rope.unsqueeze(2), context.cos, context.sin).squeeze(2)
        keys = [[place for first, count in self.paths[number] for place in range(first, first + count)] for number, _ in asking]
        width, most = max(map(len, keys)), max(len(some) for _, some in asking)
        at = torch.tensor([one + [0] * (width - len(one)) for one in keys], device=device)
        places = torch.tensor([[*range(len(one)), *[-1] * (width - len(one))] for one in keys], device=device)
        rows = torch.tensor([[*some, *[some[-1]] * (most - len(some))] for _, some in asking], device=device)
        latents = _Latents(attention.kv_a_layernorm(c_kv)[0][at], k_rope[0][at], places)
        valid = torch.tensor([place < len(some) for _, some in asking for place in range(most)], device=device)
        out = x[0][rows] + attention(h[0][rows], model.context(context.positions[0][rows], cache=latents))
        return out.flatten(0, 1)[valid].unsqueeze(0)


@dataclass(frozen=True)
class _Latents:
    """What the last block's queries look at: the latents of every row's own sequence, padded behind; a position of -1 is padding."""

    c_kv: Tensor
    k_rope: Tensor
    positions: Tensor

    def update(self, layer: int, c_kv: Tensor, k_rope: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The latents: those of the queries are among them."""
        return self.c_kv, self.k_rope, self.positions


def _first(path: tuple[Span, ...], tokens: int) -> tuple[Span, ...]:
    """The stretches that hold the first `tokens` tokens of a path."""
    out: list[Span] = []
    for first, count in path:
        if tokens <= 0:
            break
        out.append((first, min(count, tokens)))
        tokens -= count
    return tuple(out)
