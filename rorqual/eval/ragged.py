"""Rows of unequal lengths without padding: GEMMs and experts run over one flat list of tokens, only attention sees padded rows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rorqual.kernels import ops
from rorqual.model.block import Block
from rorqual.model.mla import AttentionContext


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal lengths as one flat list: token n stands at `places[n]` of `count` rows of `width`; mask None is causal."""

    count: int
    width: int
    places: Tensor
    mask: Tensor | None

    def attend(self, block: Block, x: Tensor, context: AttentionContext, kept: Tensor | None) -> Tensor:
        """The residual stream after attention, of all tokens or of those `kept`; GEMMs run over tokens, attention over rows."""
        attention = block.self_attn
        h = block.input_layernorm(x)
        c_kv, k_rope = attention.kv_a_proj_with_mqa(h).split([attention.kv_lora_rank, attention.rope], dim=-1)
        flat = attention.expand(attention.queries(h), attention.kv_a_layernorm(c_kv), k_rope, context.cos, context.sin)
        q, k, v = (self._rows(one[0]) for one in flat)
        out = ops.attention(q, k, v, context.softmax_scale, self.mask).flatten(0, 1)
        if kept is not None:
            return x[:, kept] + attention.o_proj(out[self.places[kept]].unsqueeze(0))
        return x + attention.o_proj(out[self.places].unsqueeze(0))

    def _rows(self, flat: Tensor) -> Tensor:
        """Heads of all tokens [h, n, d] as padded rows [b, h, s, d]."""
        rows = flat.new_zeros(flat.shape[0], self.count * self.width, flat.shape[2])
        rows[:, self.places] = flat
        return rows.view(flat.shape[0], self.count, self.width, flat.shape[2]).transpose(0, 1)
