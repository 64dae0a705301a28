"""MLA's attention over sequences that share beginnings, each of which stands once: a tree of stretches of tokens, without padding.

For scoring, without gradients. On FP32 tensors of a CPU it is compiled (tree.cpp), elsewhere padded rows go through `ops.attention`.
Shape letters: n tokens, h head, d head width, r rotary width, w width of a token's keys and values, p pair, o output width, g parts, m spans.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rorqual.kernels import native, ops

_SLACK = 8  # positions that padded rows of one call may differ by, or a quarter of the shortest


@dataclass(frozen=True)
class Tree:
    """`paths[i]`: the stretches (first token, tokens) of a path from the root; the last is a part, whose tokens see the path and themselves.

    Every token belongs to one part. Parts are one path each; stretches before the last may end within a part.
    """

    paths: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def lengths(self) -> list[int]:
        """Keys that the last token of each part sees."""
        return [sum(count for _, count in path) for path in self.paths]


def tree_attention(
    q: Float[Tensor, "n h d"],
    kv: Float[Tensor, "n w"],
    k_rope: Float[Tensor, "n r"],
    cos: Float[Tensor, "n p"],
    sin: Float[Tensor, "n p"],
    scale: float,
    tree: Tree,
) -> Float[Tensor, "n o"]:
    """softmax(scale q k^T) v of every token over its path, heads side by side, from the unrotated projections that `ops.mla_heads` takes.

    MemoryError where the scratch of the longest path finds no memory.
    """
    compiled = k_rope.stride(-1) == 1 and native.usable(q, kv, k_rope, cos)
    return (_compiled if compiled else _padded)(q, kv, k_rope, cos, sin, scale, tree)


def _compiled(q: Tensor, kv: Tensor, k_rope: Tensor, cos: Tensor, sin: Tensor, scale: float, tree: Tree) -> Tensor:
    (n, h, d), r = q.shape, k_rope.shape[-1]
    c = kv.shape[-1] // h - (d - r)
    ends = torch.tensor([0, *map(len, tree.paths)]).cumsum(0)
    parts = torch.stack([torch.tensor([path[-1][0] for path in tree.paths]), ends[:-1], ends[1:]], dim=1)
    spans = torch.tensor([span for path in tree.paths for span in path])
    out, turned = torch.empty(n, h * c), torch.empty(n, r)
    q, kv, cos, sin = (one.contiguous() for one in (q, kv, cos, sin))
    given = q, kv, k_rope, k_rope.stride(0), cos, sin, turned, parts, len(parts), spans, max(tree.lengths), out
    native.enough(native._call("rq_tree_attention", *given, n, h, d, r, c, scale), "attention", f"a path of {max(tree.lengths)} tokens")
    return out


def _padded(q: Tensor, kv: Tensor, k_rope: Tensor, cos: Tensor, sin: Tensor, scale: float, tree: Tree) -> Tensor:
    """Parts of similar size as rows of one call, filled up to the longest."""
    heads = ops.mla_heads(*(one.unsqueeze(0) for one in (q, kv, k_rope, cos, sin)))
    out: Tensor | None = None
    for some in _alike(tree):
        keys = [torch.cat([torch.arange(first, first + count) for first, count in path]) for path in some]
        counts = torch.tensor([path[-1][1] for path in some])
        sizes = torch.tensor([len(one) for one in keys])
        at = torch.nn.utils.rnn.pad_sequence(keys, batch_first=True)
        own = torch.arange(int(counts.max())).expand(len(some), -1)
        asked = torch.tensor([path[-1][0] for path in some]).unsqueeze(1) + own.minimum(counts.unsqueeze(1) - 1)
        seen = torch.arange(at.shape[1]) <= (sizes - counts).unsqueeze(1).unsqueeze(2) + own.unsqueeze(2)
        seen &= (torch.arange(at.shape[1]) < sizes.unsqueeze(1)).unsqueeze(1)
        at, asked = at.to(q.device), asked.to(q.device)
        rows = [one[0][:, index].transpose(0, 1) for one, index in zip(heads, (asked, at, at), strict=True)]
        found = ops.attention(rows[0], rows[1], rows[2], scale, seen.to(q.device))
        if out is None:
            out = found.new_empty(q.shape[0], found.shape[-1])
        valid = (own < counts.unsqueeze(1)).to(q.device)
        out[asked[valid]] = found[valid]
    return q.new_empty(0, 0) if out is None else out


def _alike(tree: Tree) -> Iterator[list[tuple[tuple[int, int], ...]]]:
    order = sorted(zip(tree.lengths, tree.paths, strict=True), key=lambda one: (one[0], one[1][-1][1]))
    some: list[tuple[tuple[int, int], ...]] = []
    shortest = 0
    for length, path in order:
        if some and length - shortest > max(_SLACK, shortest // 4):
            yield some
            some = []
        if not some:
            shortest = length
        some.append(path)
    if some:
        yield some
