"""The paged view: entries land in their block's slots, rows see their own, empty slots are marked; bytes are the specification's."""

from __future__ import annotations

import torch

from rorqual.inference.paged import PagedStorage, PagedView, block_bytes
from tests.tiny import t0


def test_entries_of_two_rows_across_a_block_border():
    storage = PagedStorage(t0(), 4, num_layers=2, block_size=4, poison=True)
    tables = torch.tensor([[2, 0], [3, 3]])
    positions = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 3, 3]])[:, :4] + torch.tensor([[0], [0]])
    entries = positions.float().unsqueeze(2) + torch.tensor([100.0, 200.0]).view(2, 1, 1)
    PagedView(storage, tables, positions).update(1, entries.expand(-1, -1, 32), -entries.expand(-1, -1, 8), positions)
    one = torch.tensor([[4]])
    new = torch.full((1, 1, 1), 104.0)
    c_kv, k_rope, keys = PagedView(storage, tables[:1], one).update(1, new.expand(-1, -1, 32), -new.expand(-1, -1, 8), one)
    assert keys.tolist() == [[0, 1, 2, 3, 4, -1, -1, -1]]
    assert c_kv[0, :, 0].tolist() == [100, 101, 102, 103, 104, 0, 0, 0] and k_rope[0, 4, 7] == -104
    assert storage.values[1, 3, :, 0].tolist() == [200, 201, 202, 203] and storage.values[0].isnan().all()
    storage.free(3)
    assert storage.values[1, 3].isnan().all() and not storage.values[1, 2].isnan().any()


def test_bytes_of_a_block():
    assert block_bytes(t0(), 4, 2) == PagedStorage(t0(), 1, num_layers=4, dtype=torch.bfloat16).values.nbytes == 4 * 16 * 40 * 2
