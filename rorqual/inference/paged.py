"""Latent cache in blocks: one tensor for all layers and sequences, read and written through block tables.

Position p of a sequence lies in block table[p // block_size], slot p % block_size. An entry is the latent after its norm and the
shared key after its rotation (report section 2.1.1; specification sections 2.5 and 2.6): kv_lora_rank + qk_rope_head_dim numbers. In test mode (`poison`) free slots hold NaN and the view shows empty slots as
zeros, so that only a read of a slot that is wrongly taken for filled gives NaN. Shape letters: b rows, s new positions, t slots,
n blocks of a row, c latent width, r rotary width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rorqual.config import ModelConfig
from rorqual.inference.blocks import BLOCK_SIZE


class PagedStorage:
    """`values` is [layers, num_blocks, block_size, c + r]; `num_layers` includes the MTP modules asked for.

    `scratch`: True adds one block behind them, whose number the attribute then is (else None): padding of a recorded step writes there.
    With `keep_routes`, `routes` [num_blocks, block_size, MoE layers of the trunk, chosen] holds the experts that each slot's token went to.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        *,
        num_layers: int,
        block_size: int = BLOCK_SIZE,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        poison: bool = False,
        keep_routes: bool = False,
        scratch: bool = False,
    ) -> None:
        self.scratch = num_blocks if scratch else None
        num_blocks += scratch
        self.routes: Tensor | None = None
        if keep_routes:
            moe = sum(config.is_moe(layer) for layer in range(config.num_hidden_layers))
            self.routes = torch.full((num_blocks, block_size, moe, config.num_experts_per_tok), -1, dtype=torch.int16, device=device)
        self.block_size, self.poison, self.latent_width = block_size, poison, config.kv_lora_rank
        shape = (num_layers, num_blocks, block_size, config.kv_lora_rank + config.qk_rope_head_dim)
        self.values = torch.full(shape, float("nan") if poison else 0.0, dtype=dtype, device=device)

    def keep(self, tables: Int[Tensor, "b n"], positions: Int[Tensor, "b s"], routes: Int[Tensor, "b s l k"]) -> None:
        """Writes the experts of tokens at `positions` of the sequences with these block tables."""
        assert self.routes is not None
        size = self.block_size
        slots = tables.gather(1, positions // size) * size + positions % size
        self.routes.view(-1, *self.routes.shape[2:])[slots.flatten()] = routes.flatten(0, 1).to(torch.int16)

    def read_routes(self, blocks: list[int], tokens: int) -> Int[Tensor, "t l k"]:
        """Experts of the first `tokens` tokens of a sequence, int16, in the CPU's memory; -1 where a slot was never written."""
        assert self.routes is not None
        return self.routes[torch.tensor(blocks, device=self.routes.device)].flatten(0, 1)[:tokens].to("cpu", copy=True)

    def free(self, block: int) -> None:
        """Marks a block's contents as given up; nothing but NaN in test mode."""
        if self.poison:
            self.values[:, block] = float("nan")


def block_bytes(config: ModelConfig, num_layers: int, itemsize: int, block_size: int = BLOCK_SIZE) -> int:
    """Bytes of one block over all layers."""
    return num_layers * block_size * (config.kv_lora_rank + config.qk_rope_head_dim) * itemsize


class PagedView:
    """model.mla.LatentCache of some sequences for one forward at `positions`; rows see their own entries up to their last position."""

    def __init__(self, storage: PagedStorage, tables: Int[Tensor, "b n"], positions: Int[Tensor, "b s"]) -> None:
        self._storage = storage
        size = storage.block_size
        self._slots = tables.gather(1, positions // size) * size + positions % size
        last = positions[:, -1:]
        self._tables = tables[:, : int(last.max()) // size + 1]
        every = torch.arange(self._tables.shape[1] * size, device=positions.device).expand(len(tables), -1)
        self._key_positions = every.masked_fill(every > last, -1)

    def update(
        self, layer: int, c_kv: Float[Tensor, "b s c"], k_rope: Float[Tensor, "b s r"], positions: Int[Tensor, "b s"]
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b t r"], Int[Tensor, "b t"]]:
        """Stores the new entries of `layer` and returns all visible ones with their positions, -1 for empty slots."""
        values = self._storage.values[layer]
        values.view(-1, values.shape[-1])[self._slots] = torch.cat([c_kv, k_rope], dim=-1).to(values.dtype)
        visible = values[self._tables].flatten(1, 2)
        if self._storage.poison:
            visible = visible.masked_fill((self._key_positions < 0).unsqueeze(2), 0.0)
        width = self._storage.latent_width
        return visible[..., :width], visible[..., width:], self._key_positions
