"""Blocks: counts, hits by content, least recently used first, and what is given up."""

from __future__ import annotations

import pytest

from rorqual.errors import ConfigError
from rorqual.inference.blocks import ROOT, BlockPool


def test_a_known_prefix_is_shared_and_the_oldest_idle_block_goes_first():
    freed: list[int] = []
    pool = BlockPool(3, 2, freed.append)
    a, b = pool.allocate(), pool.allocate()
    parent = pool.register(a, ROOT, [1, 2])
    pool.register(b, parent, [3, 4])
    assert pool.match([1, 2, 3, 4, 5], 4)[0] == [a, b] and pool.references(a) == 2
    assert pool.match([1, 2, 3, 4], 3)[0] == [a] and pool.match([9, 2, 3, 4], 4)[0] == []
    pool.release([a, b])
    pool.release([a])
    pool.release([a, b])
    assert pool.num_free == 3 and pool.usage == 0 and freed == []
    pool.allocate()
    assert pool.allocate() == b and freed == [b]  # the end of a prefix goes before its beginning
    assert pool.match([1, 2, 3, 4], 4)[0] == [a] and pool.allocate() is None


def test_equal_hashes_of_other_ids_are_no_hit(monkeypatch):
    monkeypatch.setattr(BlockPool, "_hash", staticmethod(lambda parent, ids: 7))
    pool = BlockPool(2, 2)
    pool.register(pool.allocate(), ROOT, [1, 2])
    assert pool.match([3, 4], 2)[0] == [] and pool.match([1, 2], 2)[0] == [0]


def test_refusals():
    with pytest.raises(ConfigError, match="at least 1"):
        BlockPool(0)
    with pytest.raises(ValueError, match="nobody holds"):
        BlockPool(1).release([0])
