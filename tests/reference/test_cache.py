"""The contiguous latent cache: bytes, growth, roll-back, rows that share nothing, refusals, and NaN in free slots."""

from __future__ import annotations

import pytest
import torch

from rorqual.planner.params import cache_values_per_token
from tests.reference.cache import ContiguousCache
from tests.tiny import t0

WIDTH = 40  # T0: kv_lora_rank 32 + qk_rope_head_dim 8


def _positions(*starts: int, width: int) -> torch.Tensor:
    return torch.tensor([list(range(start, start + width)) for start in starts])


def _entries(positions: torch.Tensor, layer: int = 0, row_offset: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Entries that name their layer, row and position."""
    b = positions.shape[0]
    rows = torch.arange(row_offset, row_offset + b).view(b, 1, 1)
    value = (layer * 10_000 + rows * 1_000 + positions.unsqueeze(2)).float()
    return value.expand(-1, -1, 32), -value.expand(-1, -1, 8)


def _fill(cache: ContiguousCache, lengths: list[int], layers: int = 1) -> None:
    for row, length in enumerate(lengths):
        for layer in range(layers):
            if length:
                positions = _positions(0, width=length)
                cache.rows([row]).update(layer, *_entries(positions, layer, row), positions)


@pytest.mark.parametrize(("mtp", "dtype"), [(False, torch.float32), (True, torch.float32), (True, torch.bfloat16)])
@pytest.mark.parametrize("changes", [{}, {"kv_lora_rank": 24, "num_nextn_predict_layers": 2, "num_hidden_layers": 5}])
def test_bytes_are_the_planners(mtp, dtype, changes):
    """Specification 2.6: layers * (kv_lora_rank + qk_rope_head_dim) * bytes of a value, and nothing on top."""
    config = t0(**changes)
    layers = config.num_blocks if mtp else config.num_hidden_layers
    cache = ContiguousCache(config, 3, num_layers=layers, capacity=16, dtype=dtype)
    assert cache.bytes_per_token == cache_values_per_token(config, mtp=mtp) * dtype.itemsize
    assert cache.num_bytes == 3 * 16 * cache.bytes_per_token
    assert cache.bytes_per_token == layers * (config.kv_lora_rank + 8) * dtype.itemsize


def test_rows_of_different_lengths_see_their_own_entries():
    cache = ContiguousCache(t0(), 3, capacity=2, poison=True)
    _fill(cache, [3, 0, 5])
    assert cache.lengths == [3, 0, 5] and cache.lengths_of(1) == [0, 0, 0]
    positions = _positions(3, 0, 5, width=2)
    c_kv, k_rope, key_positions = cache.update(0, *_entries(positions), positions)
    assert key_positions.tolist() == [[0, 1, 2, 3, 4, -1, -1], [0, 1, -1, -1, -1, -1, -1], [0, 1, 2, 3, 4, 5, 6]]
    for row in range(3):
        seen = key_positions[row] >= 0
        assert torch.equal(c_kv[row, seen, 7], row * 1_000.0 + key_positions[row, seen])
        assert torch.equal(k_rope[row, seen, 3], -(row * 1_000.0 + key_positions[row, seen]))
        assert (c_kv[row, ~seen] == 0).all()
    assert cache.lengths == [5, 2, 7]


def test_growth_keeps_what_is_there_and_doubles():
    cache = ContiguousCache(t0(), 2, capacity=4)
    for start in range(40):
        positions = _positions(start, start, width=1)
        c_kv, _, _ = cache.update(0, *_entries(positions), positions)
    assert torch.equal(c_kv[1, :, 0], 1_000.0 + torch.arange(40.0))
    assert cache.num_bytes == 2 * (64 + 4 + 4) * WIDTH * 4  # the layers that were not used did not grow


def test_roll_back_forgets_and_later_entries_take_the_place():
    cache = ContiguousCache(t0(), 2, capacity=8, poison=True)
    _fill(cache, [6, 6], layers=3)
    cache.truncate([2, 9])
    assert [cache.lengths_of(layer) for layer in range(3)] == [[2, 6]] * 3
    cache.truncate([0, 4], layers=[2])
    assert cache.lengths_of(1) == [2, 6] and cache.lengths_of(2) == [0, 4]
    positions = _positions(2, 6, width=1)
    c_kv, _, key_positions = cache.update(0, *_entries(positions, row_offset=5), positions)
    assert c_kv[0, :3, 0].tolist() == [0, 1, 5_002] and key_positions[0].tolist() == [0, 1, 2, -1, -1, -1, -1]


def test_writing_below_the_length_forgets_what_came_after():
    cache = ContiguousCache(t0(), 1, capacity=8)
    _fill(cache, [6])
    positions = _positions(2, width=1)
    _, _, key_positions = cache.update(0, *_entries(positions), positions)
    assert cache.lengths == [3] and key_positions.tolist() == [[0, 1, 2]]


def test_free_slots_hold_nan_in_test_mode_and_zero_otherwise():
    for poison in (True, False):
        cache = ContiguousCache(t0(), 1, capacity=4, poison=poison)
        _fill(cache, [4])
        cache.truncate([1])
        freed = cache._storage[0][0, 1:]
        assert freed.isnan().all() if poison else freed.isfinite().all()
        assert not cache._storage[0][0, 0].isnan().any()
        assert cache._storage[1].isnan().all() if poison else (cache._storage[1] == 0).all()


def test_a_part_of_the_rows_shares_the_storage():
    cache = ContiguousCache(t0(), 4, capacity=4, poison=True)
    part = cache.rows([3, 1])
    positions = _positions(0, 0, width=6)
    c_kv, _, _ = part.update(0, *_entries(positions), positions)
    assert cache.lengths == [0, 6, 0, 6] and part.lengths == [6, 6]
    assert c_kv[:, 5, 0].tolist() == [5.0, 1_005.0]
    part.rows([1]).truncate([2])
    assert cache.lengths == [0, 2, 0, 6]


def test_keep_drops_rows_and_renumbers_the_others():
    cache = ContiguousCache(t0(), 4, capacity=4)
    _fill(cache, [1, 2, 3, 4])
    before = cache.num_bytes
    cache.keep([3, 1])
    assert cache.lengths == [4, 2] and cache.num_bytes == before // 2
    positions = _positions(4, 2, width=1)
    c_kv, _, _ = cache.update(0, *_entries(positions), positions)
    assert c_kv[0, :4, 0].tolist() == [3_000, 3_001, 3_002, 3_003] and c_kv[1, :2, 0].tolist() == [1_000, 1_001]


def test_positions_changed_in_place_are_read_again():
    """One forward passes one tensor to all layers, so it is read once; another forward may reuse it."""
    cache = ContiguousCache(t0(), 1, capacity=4)
    positions = _positions(0, width=1)
    cache.update(0, *_entries(positions), positions)
    positions += 1
    assert cache.update(0, *_entries(positions), positions)[2].tolist() == [[0, 1]]
    with torch.inference_mode():
        positions = _positions(2, width=1)
        cache.update(0, *_entries(positions), positions)
        positions += 1
        assert cache.update(0, *_entries(positions), positions)[2].tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([[3, 4]], "start at 3, but 2 are stored"),
        ([[2, 4]], "must follow each other"),
        ([[-1, 0]], "must follow each other"),
        ([[2, 3], [2, 3]], "2 rows of positions for a cache of 1"),
    ],
)
def test_positions_that_leave_a_gap_are_refused(positions, message):
    cache = ContiguousCache(t0(), 1, capacity=4)
    _fill(cache, [2])
    wrong = torch.tensor(positions)
    with pytest.raises(ValueError, match=message):
        cache.update(0, *_entries(wrong), wrong)
    assert cache.lengths == [2]
