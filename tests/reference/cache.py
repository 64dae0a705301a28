"""Latent cache of a batch of sequences of different lengths (report section 2.1.1; specification sections 2.5 and 2.6).

Per token and layer one entry of kv_lora_rank + qk_rope_head_dim values: the latent after its norm, the shared key after its
rotation. `RowCache` is what generation needs; the model sees only its `update` (model.mla.LatentCache), so paged storage takes
this one's place without a change to either. Here slot p of a row holds position p, so roll-back forgets a length and moves nothing.

In test mode (`poison=True`) free slots hold NaN: a read of a slot that was never written, or was rolled back, shows at once (field
case F11). Shape letters: b rows, s new positions, t all positions, c latent width, r rotary width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rorqual.config import ModelConfig
from rorqual.model.mla import LatentCache


class RowCache(LatentCache, Protocol):
    """Latent storage of rows that grow, roll back and leave; rows are numbered 0..b-1 in the order of `update`'s batch."""

    @property
    def lengths(self) -> list[int]:
        """Entries of each row in the trunk's layers."""
        ...

    def lengths_of(self, layer: int) -> list[int]:
        """Entries of each row in one layer; MTP modules run behind the trunk."""
        ...

    def truncate(self, lengths: Sequence[int], layers: Iterable[int] | None = None) -> None:
        """Forgets each row's entries from `lengths[row]` on, in `layers` (default: all). A shorter row stays as it is."""
        ...

    def rows(self, rows: Sequence[int]) -> RowCache:
        """These rows alone, as a cache over the same storage; valid until the next `keep`."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all other rows; row i is then the former `rows[i]`."""
        ...


class ContiguousCache:
    """One preallocated tensor [b, capacity, c + r] per layer, which grows by doubling when a row needs more.

    `num_layers` counts the blocks stored, MTP modules included (default: the trunk). Positions of an `update` must follow each
    other and start at or before the row's length: a gap would be read as zeros, so it is a ValueError.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_rows: int,
        *,
        num_layers: int | None = None,
        capacity: int = 64,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        poison: bool = False,
    ) -> None:
        self.latent_width, self.entry_width = config.kv_lora_rank, config.kv_lora_rank + config.qk_rope_head_dim
        self.poison = poison
        layers = config.num_hidden_layers if num_layers is None else num_layers
        shape = (num_rows, capacity, self.entry_width)
        # zeros, not uninitialised memory: a masked slot has weight 0, and 0 times a stray NaN is NaN
        self._storage = [torch.full(shape, self._free, dtype=dtype, device=device) for _ in range(layers)]
        self._lengths = [[0] * num_rows for _ in range(layers)]
        self._rows = list(range(num_rows))
        self._plan: _Plan | None = None

    @property
    def _free(self) -> float:
        return float("nan") if self.poison else 0.0

    @property
    def bytes_per_token(self) -> int:
        """layers * (kv_lora_rank + qk_rope_head_dim) * bytes of a value (specification section 2.6)."""
        return sum(layer.shape[2] * layer.element_size() for layer in self._storage)

    @property
    def num_bytes(self) -> int:
        """Bytes allocated for all rows, used or not."""
        return sum(layer.nbytes for layer in self._storage)

    @property
    def lengths(self) -> list[int]:
        """Entries of each row in the trunk's layers."""
        return self.lengths_of(0)

    def lengths_of(self, layer: int) -> list[int]:
        """Entries of each row in one layer."""
        return [self._lengths[layer][row] for row in self._rows]

    def update(
        self, layer: int, c_kv: Float[Tensor, "b s c"], k_rope: Float[Tensor, "b s r"], positions: Int[Tensor, "b s"]
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b t r"], Int[Tensor, "b t"]]:
        """Stores the new entries and returns all visible ones; positions below 0 are slots that a shorter row does not use.

        Whatever a row held from its first new position on is overwritten or forgotten.
        """
        plan = self._planned(positions)
        lengths = self._lengths[layer]
        for row, start in zip(self._rows, plan.starts, strict=True):
            if start > lengths[row]:
                raise ValueError(f"layer {layer}, row {row}: positions start at {start}, but {lengths[row]} are stored; fill the gap first")
        if self.poison:
            self.truncate(plan.starts, [layer])
        self._grow(layer, plan.num_slots)
        storage = self._storage[layer]
        new = torch.cat([c_kv, k_rope], dim=-1).to(storage.dtype)
        if plan.slots is not None:
            storage[self._rows[0] : self._rows[0] + len(self._rows), plan.slots] = new
        else:
            storage[plan.rows.unsqueeze(1), positions] = new
        for row, start in zip(self._rows, plan.starts, strict=True):
            lengths[row] = start + positions.shape[1]
        if plan.adjacent:
            visible = storage[self._rows[0] : self._rows[0] + len(self._rows), : plan.num_slots]
        else:
            visible = storage[:, : plan.num_slots].index_select(0, plan.rows)
        if self.poison:
            visible = visible.masked_fill((plan.key_positions < 0).unsqueeze(2), 0.0)
        return visible[..., : self.latent_width], visible[..., self.latent_width :], plan.key_positions

    def _planned(self, positions: Tensor) -> _Plan:
        """The same for all layers of a forward, which pass the same tensor, so made once."""
        version = None if positions.is_inference() else positions._version
        if self._plan is None or version is None or self._plan.made_for is not positions or self._plan.version != version:
            self._plan = _Plan(positions, version, self._rows)
        return self._plan

    def _grow(self, layer: int, num_slots: int) -> None:
        old = self._storage[layer]
        rows, capacity, width = old.shape
        if num_slots > capacity:
            new = torch.full((rows, max(num_slots, 2 * capacity), width), self._free, dtype=old.dtype, device=old.device)
            new[:, :capacity] = old
            self._storage[layer] = new

    def truncate(self, lengths: Sequence[int], layers: Iterable[int] | None = None) -> None:
        """Forgets each row's entries from `lengths[row]` on, in `layers` (default: all). A shorter row stays as it is."""
        for layer in range(len(self._storage)) if layers is None else layers:
            held = self._lengths[layer]
            for row, length in zip(self._rows, lengths, strict=True):
                if length < held[row]:
                    if self.poison:
                        self._storage[layer][row, length : held[row]] = self._free
                    held[row] = length

    def rows(self, rows: Sequence[int]) -> ContiguousCache:
        """These rows alone, over the same storage; valid until the next `keep`."""
        part = object.__new__(ContiguousCache)
        part.__dict__.update(self.__dict__)
        part._rows, part._plan = [self._rows[row] for row in rows], None
        return part

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all other rows and gives their memory back; row i is then the former `rows[i]`."""
        kept = [self._rows[row] for row in rows]
        for layer, storage in enumerate(self._storage):
            self._storage[layer] = storage[kept]
            self._lengths[layer] = [self._lengths[layer][row] for row in kept]
        self._rows, self._plan = list(range(len(kept))), None


class _Plan:
    """Where one forward's entries go and what it sees, read from its positions once."""

    def __init__(self, positions: Tensor, version: int | None, rows: list[int]) -> None:
        self.made_for, self.version = positions, version
        ends = positions[:, [0, -1]].tolist()
        width = positions.shape[1]
        if len(ends) != len(rows):
            raise ValueError(f"{len(ends)} rows of positions for a cache of {len(rows)}")
        if any(start < 0 or end - start + 1 != width for start, end in ends):
            raise ValueError(f"positions of a row must follow each other from 0 or later; got first and last {ends} over {width}")
        self.starts = [start for start, _ in ends]
        self.num_slots = max(end for _, end in ends) + 1
        self.adjacent = rows == list(range(rows[0], rows[0] + len(rows)))
        together = self.adjacent and len(set(self.starts)) == 1
        self.slots = slice(self.starts[0], self.starts[0] + width) if together else None
        self.rows = torch.tensor(rows, dtype=torch.int64, device=positions.device)
        every = torch.arange(self.num_slots, dtype=torch.int64, device=positions.device).expand(len(rows), -1)
        self.key_positions = every.masked_fill(every > positions[:, -1:], -1)
