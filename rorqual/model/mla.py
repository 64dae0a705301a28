"""Multi-head latent attention (report section 2.1.1, equations 1-11).

    c_q = q_a_layernorm(W^DQ x)            [q_nope ; q_rope] = W^UQ,QR c_q   per head
    c_kv = kv_a_layernorm(W^DKV x)         k_rope = RoPE(W^KR x)             one for all heads, not normed
    [k_nope ; v] = W^UK,UV c_kv            per head

Expanded form: ordinary attention over k = [k_nope ; k_rope]. Absorbed form: W^UK moves to the query and W^UV behind the
softmax, so that the cached latent is read as it is. Both give the same output; the cache holds (c_kv after its norm,
k_rope after rotation), kv_lora_rank + qk_rope_head_dim values per token and layer (trap 3).
Shape letters: b batch, s query position, t key position, h head, d head width, r rotary width, c latent width, m model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, einsum, nn

from rorqual.config import ModelConfig
from rorqual.kernels import ops
from rorqual.model.layers import Linear, RMSNorm
from rorqual.model.rope import apply_rope


class LatentCache(Protocol):
    """Storage of past latents; contiguous in the simple loop, paged in the engine."""

    def update(
        self, layer: int, c_kv: Float[Tensor, "b s c"], k_rope: Float[Tensor, "b s r"], positions: Int[Tensor, "b s"]
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b t r"], Int[Tensor, "b t"]]:
        """Stores the new entries of `layer` and returns all visible ones with their positions; a position below 0 is an empty slot."""
        ...


@dataclass(frozen=True)
class AttentionContext:
    """What all blocks of one forward share: positions, rotary tables, softmax scale, samples of a packed batch, cache.

    runs are the lengths of each row's samples, one after the other; a mask takes their place where samples do not lie so.
    """

    positions: Int[Tensor, "b s"]
    cos: Float[Tensor, "b s p"]
    sin: Float[Tensor, "b s p"]
    softmax_scale: float
    mask: Bool[Tensor, "b s t"] | None = None
    cache: LatentCache | None = None
    runs: tuple[tuple[int, ...], ...] | None = None

    def visible(self) -> Bool[Tensor, "b s t"]:
        """Which keys each query sees, without a cache."""
        if self.mask is not None:
            return self.mask
        if self.runs is None:
            return self.positions.unsqueeze(1) <= self.positions.unsqueeze(2)
        numbers = [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in self.runs]
        samples = torch.stack(numbers).to(self.positions.device)
        return (samples.unsqueeze(1) == samples.unsqueeze(2)).tril()


class MLA(nn.Module):
    """Attention of one block. `attention_form` is "expanded", "absorbed" or "auto": absorbed for a few query rows over a cache."""

    absorbed_query_rows = 8  # "auto" takes the absorbed form up to this many query positions

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.attention_form = layer, "auto"
        self.num_heads, self.kv_lora_rank = config.num_attention_heads, config.kv_lora_rank
        self.nope, self.rope, self.v_width = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        q_width = self.num_heads * config.qk_head_dim
        self.q_lora_rank = config.settled().q_lora_rank
        if self.q_lora_rank is None:
            self.q_proj = Linear(config.hidden_size, q_width)
        else:
            self.q_a_proj = Linear(config.hidden_size, self.q_lora_rank)
            self.q_a_layernorm = RMSNorm(self.q_lora_rank, config.rms_norm_eps)
            self.q_b_proj = Linear(self.q_lora_rank, q_width)
        self.kv_a_proj_with_mqa = Linear(config.hidden_size, self.kv_lora_rank + self.rope)
        self.kv_a_layernorm = RMSNorm(self.kv_lora_rank, config.rms_norm_eps)
        self.kv_b_proj = Linear(self.kv_lora_rank, self.num_heads * (self.nope + self.v_width))
        self.o_proj = Linear(self.num_heads * self.v_width, config.hidden_size)

    def queries(self, x: Float[Tensor, "b s m"]) -> Float[Tensor, "b s q"]:
        """What the up-projection of the queries starts from: the query latent, or x itself without query compression."""
        return x if self.q_lora_rank is None else self.q_a_proj(x)

    def up_project_q(self, c_q: Float[Tensor, "b s q"]) -> Float[Tensor, "b s h d"]:
        """All heads' unrotated queries, nope first, rope last."""
        q = self.q_proj(c_q) if self.q_lora_rank is None else self.q_b_proj(self.q_a_layernorm(c_q))
        return q.view(*q.shape[:2], self.num_heads, self.nope + self.rope)

    def expand(
        self, c_q: Float[Tensor, "b s q"], c_kv: Float[Tensor, "b s c"], k_rope: Float[Tensor, "b s r"], cos: Tensor, sin: Tensor
    ) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s d"], Float[Tensor, "b h s v"]]:
        """The up-projections: every head's rotated q and k, and v, head-major; the recompute policy wraps this method."""
        return ops.mla_heads(self.up_project_q(c_q), self.kv_b_proj(c_kv), k_rope, cos, sin)

    def forward(self, x: Float[Tensor, "b s m"], context: AttentionContext) -> Float[Tensor, "b s m"]:
        s = x.shape[1]
        c_q = self.queries(x)
        c_kv, k_rope = self.kv_a_proj_with_mqa(x).split([self.kv_lora_rank, self.rope], dim=-1)
        c_kv = self.kv_a_layernorm(c_kv)
        if context.cache is None and self.attention_form != "absorbed":
            q, k, v = self.expand(c_q, c_kv, k_rope, context.cos, context.sin)
            if context.runs is not None:
                return self.o_proj(ops.isolated_attention(q, k, v, context.softmax_scale, context.runs))
            return self.o_proj(ops.attention(q, k, v, context.softmax_scale, context.mask))
        q_nope, q_rope = self.up_project_q(c_q).split([self.nope, self.rope], dim=-1)
        q_rope = apply_rope(q_rope, context.cos, context.sin)
        k_rope = apply_rope(k_rope.unsqueeze(2), context.cos, context.sin).squeeze(2)
        if context.cache is None:
            mask = context.visible()
        else:
            c_kv, k_rope, key_positions = context.cache.update(self.layer, c_kv, k_rope, context.positions)
            mask = (key_positions >= 0).unsqueeze(1) & (key_positions.unsqueeze(1) <= context.positions.unsqueeze(2))
        absorbed = self.attention_form == "absorbed" or (self.attention_form == "auto" and s <= self.absorbed_query_rows)
        attend = self._absorbed if absorbed else self._expanded
        return self.o_proj(attend(q_nope, q_rope, c_kv, k_rope, mask, context.softmax_scale))

    def _expanded(self, q_nope, q_rope, c_kv, k_rope, mask, scale) -> Float[Tensor, "b s o"]:  # type: ignore[no-untyped-def]
        b, t, _ = c_kv.shape
        k_nope, v = self.kv_b_proj(c_kv).view(b, t, self.num_heads, self.nope + self.v_width).split([self.nope, self.v_width], dim=-1)
        k = torch.cat([k_nope, k_rope.unsqueeze(2).expand(-1, -1, self.num_heads, -1)], dim=-1)
        q, k, v = (part.transpose(1, 2) for part in (torch.cat([q_nope, q_rope], dim=-1), k, v))
        return ops.attention(q, k, v, scale, mask)

    def _absorbed(self, q_nope, q_rope, c_kv, k_rope, mask, scale) -> Float[Tensor, "b s o"]:  # type: ignore[no-untyped-def]
        w_uk, w_uv = self.kv_b_proj.dense_weight().view(self.num_heads, -1, self.kv_lora_rank).split([self.nope, self.v_width], dim=1)
        q_latent = einsum("bshd,hdc->bshc", q_nope, w_uk)
        scores = einsum("bshc,btc->bsht", q_latent, c_kv) + einsum("bshr,btr->bsht", q_rope, k_rope)
        scores = (scores.float() * scale).masked_fill(~mask.unsqueeze(2), float("-inf"))
        mixed = einsum("bsht,btc->bshc", scores.softmax(dim=-1).to(c_kv.dtype), c_kv)
        return einsum("bshc,hdc->bshd", mixed, w_uv).flatten(2)
