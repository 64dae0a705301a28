"""CUDA graphs of a decode step: one recording per number of rows that a bucket holds, over inputs that stay where they are.

    rows = StaticRows(table_width, scratch, device)
    graphs = Graphs(cuda_recorder())
    bucket = rows.bucket(len(ids))
    graphs.prepare(key, bucket, rows, body)           # records once, on padding alone
    rows.fill(bucket, ids, positions, tables)
    outputs = graphs.replay(key, bucket)              # the body's tensors, overwritten by the next replay

A call with n rows runs in the smallest bucket that holds them; the rows behind n are padding: token 0 at position 0 of a block that belongs to
no sequence, so they write there, read what they wrote, and change nothing. A body may not look at a value on the host, and a row's result may
not depend on the other rows (kernels.triton_rows), so padding changes no bit. Which slot a row writes follows from its table and position
inside the recording. What records is handed in: `cuda_recorder` where there is a device; tests replay the body itself. `cuda_recorder` has not
been run on a device here. Shape letters: n rows, t blocks of a table, m model width.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

BUCKETS = (1, 2, 4, 8, 16, 32, 64)

Body = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True, eq=False)
class Recording:
    """A body that was recorded: `replay` computes `outputs` anew, in place, from what the inputs hold then."""

    outputs: tuple[Tensor, ...]
    replay: Callable[[], None]


Recorder = Callable[[Body], Recording]


class StaticRows:
    """Token ids, positions, block tables and states of up to BUCKETS[-1] rows. `scratch` is a block that no sequence holds."""

    def __init__(
        self, table_width: int, scratch: int, device: torch.device | str, hidden_width: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        most = BUCKETS[-1]
        self.table_width, self._scratch = table_width, scratch
        self.ids = torch.zeros(most, dtype=torch.int64, device=device)
        self.positions = torch.zeros(most, dtype=torch.int64, device=device)
        self.tables = torch.full((most, table_width), scratch, dtype=torch.int64, device=device)
        self.hidden = torch.zeros(most, hidden_width, dtype=dtype, device=device)

    def takes(self, n: int, table_width: int) -> bool:
        """Whether a call of n rows with tables of this width fits."""
        return 0 < n <= BUCKETS[-1] and table_width <= self.table_width

    @staticmethod
    def bucket(n: int) -> int:
        """Rows of the smallest bucket that holds n."""
        return next(size for size in BUCKETS if size >= n)

    def pad(self, first: int, last: int) -> None:
        """Makes rows first .. last - 1 padding."""
        self.ids[first:last].zero_()
        self.positions[first:last].zero_()
        self.tables[first:last].fill_(self._scratch)
        self.hidden[first:last].zero_()

    def fill(
        self, bucket: int, ids: Int[Tensor, " n"], positions: Int[Tensor, " n"], tables: Int[Tensor, "n t"],
        hidden: Float[Tensor, "n m"] | None = None,
    ) -> None:  # fmt: skip
        """Puts the rows of a call into the first places, padding behind them; columns of the tables behind a row's blocks are never read."""
        n = len(ids)
        self.ids[:n].copy_(ids, non_blocking=True)
        self.positions[:n].copy_(positions, non_blocking=True)
        self.tables[:n, : tables.shape[1]].copy_(tables, non_blocking=True)
        if hidden is not None:
            self.hidden[:n].copy_(hidden, non_blocking=True)
        if n < bucket:
            self.pad(n, bucket)


class Graphs:
    """Recordings by (key, bucket), made when they are first asked for."""

    def __init__(self, record: Recorder) -> None:
        self._record, self._made = record, {}  # type: ignore[var-annotated]

    def prepare(self, key: Hashable, bucket: int, rows: StaticRows, body: Body) -> None:
        """Records the body where it was not; everything it writes while that is done goes to the scratch block."""
        if (key, bucket) not in self._made:
            rows.pad(0, bucket)
            self._made[key, bucket] = self._record(body)

    def replay(self, key: Hashable, bucket: int) -> tuple[Tensor, ...]:
        """Runs a recording over what the rows hold now."""
        recording: Recording = self._made[key, bucket]
        recording.replay()
        return recording.outputs


def cuda_recorder() -> Recorder:
    """Records in CUDA graphs that share one pool of memory: they never run at the same time, and outputs are copied after each replay."""
    pool = torch.cuda.graph_pool_handle()

    def record(body: Body) -> Recording:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles kernels and makes libraries' handles, which a recording must not
            body()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            outputs = body()
        return Recording(outputs, graph.replay)

    return record
