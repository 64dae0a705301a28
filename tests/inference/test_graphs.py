"""Buckets, filling and padding of recorded steps, with a recorder that runs the function again in place of a CUDA graph."""

from __future__ import annotations

import pytest
import torch

from rorqual.inference.graphs import BUCKETS, Graphs, Recording, StaticRows
from tests.inference.models import replaying


def test_the_smallest_bucket_that_holds_the_rows():
    assert [StaticRows.bucket(n) for n in (1, 2, 3, 5, 17, 64)] == [1, 2, 4, 8, 32, 64]
    rows = StaticRows(3, 9, "cpu")
    assert rows.takes(64, 3) and not rows.takes(65, 3) and not rows.takes(1, 4) and not rows.takes(0, 1)


def test_rows_are_filled_and_the_rest_is_padding():
    rows = StaticRows(3, 9, "cpu", hidden_width=2)
    rows.fill(8, torch.arange(1, 9), torch.arange(8), torch.ones(8, 3, dtype=torch.int64), torch.ones(8, 2))
    rows.fill(4, torch.tensor([5, 6, 7]), torch.tensor([3, 4, 5]), torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.full((3, 2), 2.0))
    assert rows.ids[:5].tolist() == [5, 6, 7, 0, 5] and rows.positions[:4].tolist() == [3, 4, 5, 0]
    assert rows.tables[:4, :2].tolist() == [[1, 2], [3, 4], [5, 6], [9, 9]] and rows.hidden[:4].tolist() == [[2, 2], [2, 2], [2, 2], [0, 0]]
    assert rows.tables[8:].unique().tolist() == [9]  # never used: still padding


def test_a_recording_is_made_once_on_padding_and_replayed_on_the_rows():
    rows, seen, runs = StaticRows(1, 9, "cpu"), [], 0

    def body(bucket):
        nonlocal runs
        runs += 1
        seen.append(rows.tables[:bucket, 0].tolist())
        return (rows.ids[:bucket] * 10 + rows.positions[:bucket],)

    graphs, outputs = Graphs(replaying), []
    for ids in ([1, 2, 3], [4], [5, 6, 7, 8]):
        bucket = rows.bucket(len(ids))
        graphs.prepare("trunk", bucket, rows, lambda bucket=bucket: body(bucket))
        rows.fill(bucket, torch.tensor(ids), torch.ones(len(ids), dtype=torch.int64), torch.full((len(ids), 1), 2))
        outputs.append(graphs.replay("trunk", bucket)[0])
    assert outputs[1].tolist() == [41] and outputs[2].tolist() == [51, 61, 71, 81]
    assert outputs[0] is outputs[2]  # one tensor a bucket, overwritten
    assert seen == [[9] * 4, [2, 2, 2, 9], [9], [2], [2, 2, 2, 2]] and runs == 5


@pytest.mark.gpu
@torch.no_grad()
def test_cuda_graphs_replay_what_they_recorded():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from rorqual.inference.graphs import cuda_recorder

    rows, graphs = StaticRows(1, 9, "cuda"), Graphs(cuda_recorder())
    for n in (*BUCKETS, 3, 50):
        bucket = rows.bucket(n)
        graphs.prepare("a", bucket, rows, lambda bucket=bucket: (rows.ids[:bucket] * 2,))
        ids = torch.arange(n, device="cuda")
        rows.fill(bucket, ids, ids, ids.unsqueeze(1))
        assert torch.equal(graphs.replay("a", bucket)[0][:n], ids * 2)
    assert isinstance(graphs._made["a", 1], Recording)
