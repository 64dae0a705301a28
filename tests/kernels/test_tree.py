"""Attention over a tree equals attention over each path alone; its bits depend on neither neighbours nor threads."""

from __future__ import annotations

import pytest
import torch

from rorqual.kernels import native, reference, tree
from rorqual.kernels.tree import Tree, tree_attention

compiled = pytest.param(
    True, marks=pytest.mark.skipif(not native.usable(torch.zeros(1)), reason="the compiled kernels are not usable here")
)
# a root of 21 tokens; 60 after 13 of them; 1 after the root; 5 after 3 of those 60; 2 that begin anew
PATHS = (((0, 21),), ((0, 13), (21, 60)), ((0, 21), (81, 1)), ((0, 13), (21, 3), (82, 5)), ((87, 2),))
SIZES = [(3, 24, 8, 16), (2, 13, 2, 5), (1, 40, 24, 35)]


def _given(h: int, d: int, r: int, c: int) -> list[torch.Tensor]:
    make = torch.Generator().manual_seed(0)
    positions = torch.cat([torch.arange(sum(size for _, size in path))[-path[-1][1] :] for path in PATHS])
    angles = positions.unsqueeze(1) * torch.rand(r // 2, generator=make)
    shapes = [(89, h, d), (89, h * (d - r + c)), (89, r + 3)]
    q, kv, wide = (torch.randn(shape, generator=make) for shape in shapes)
    return [q, kv, wide[:, 3:], angles.cos(), angles.sin()]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", [compiled, False])
def test_every_part_sees_its_path(way, size, monkeypatch):
    if not way:
        monkeypatch.setattr(native, "usable", lambda *_: False)
    given = _given(*size)
    found = tree_attention(*given, 0.3, Tree(PATHS))
    for path in PATHS:
        at = torch.cat([torch.arange(first, first + count) for first, count in path])
        heads = reference.mla_heads(*(one[at].unsqueeze(0) for one in given))
        expected = reference.attention(*heads, 0.3, None)[0][-path[-1][1] :]
        torch.testing.assert_close(found[path[-1][0] :][: path[-1][1]], expected, atol=2e-6, rtol=2e-5)


@pytest.mark.skipif(not native.usable(torch.zeros(1)), reason="the compiled kernels are not usable here")
def test_bits_do_not_depend_on_neighbours_or_threads():
    given = _given(*SIZES[0])
    together = tree_attention(*given, 0.3, Tree(PATHS))
    alone = tree_attention(*(one[:81] for one in given), 0.3, Tree(PATHS[:2]))
    assert torch.equal(together[:81], alone)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(before, 2))
        assert torch.equal(together, tree_attention(*given, 0.3, Tree(PATHS)))
    finally:
        torch.set_num_threads(before)


def test_a_number_that_is_none_is_passed_on_along_its_paths_alone():
    given = _given(*SIZES[0])
    given[1][30] = torch.nan
    found = tree_attention(*given, 0.3, Tree(PATHS))
    assert found[30:81].isnan().all() and not found[:21].isnan().any() and not found[81:].isnan().any()


def test_half_precision_takes_padded_rows():
    given = [one.bfloat16() for one in _given(*SIZES[0])]
    found = tree_attention(*given, 0.3, Tree(PATHS))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), tree_attention(*_given(*SIZES[0]), 0.3, Tree(PATHS)), atol=0.05, rtol=0.05)


def test_parts_of_similar_size_go_together():
    assert [len(some) for some in tree._alike(Tree(PATHS))] == [1, 3, 1]
