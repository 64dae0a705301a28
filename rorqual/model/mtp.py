"""Multi-token prediction modules (report section 2.2, equations 21-25).

    h'^k_i = eh_proj [ enorm(Emb(t_{i+k})) ; hnorm(h^{k-1}_i) ]      h^k = block(h'^k)      P^k_{i+k+1} = head(shared_head.norm(h^k_i))

The order embedding first, hidden second is the released weights' (trap 6; equation 21 prints the reverse). h^0 is the
main model's state after its final norm, and h^k for the next depth is taken after `shared_head.norm`, as public servers of
the released weights do; what the report's training fed is not published. Embedding and head are the main model's.
A module is a block of the one ordered list of blocks, stored as layer num_hidden_layers + k - 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rorqual.config import ModelConfig
from rorqual.model.block import Block, BlockStats
from rorqual.model.layers import Linear, RMSNorm
from rorqual.model.mla import AttentionContext


class SharedHead(nn.Module):
    """Holds the norm before the shared output head, under the checkpoint's name."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class MTPBlock(Block):
    """One sequential MTP module: a block with the projection that merges hidden state and next token's embedding."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size)
        self.shared_head = SharedHead(config)

    def predict(
        self, hidden: Float[Tensor, "b s m"], embedding: Float[Tensor, "b s m"], context: AttentionContext
    ) -> tuple[Float[Tensor, "b s m"], BlockStats | None]:
        """h^k after shared_head.norm, from h^{k-1} and the embedding of the token k places ahead."""
        merged = self.eh_proj(torch.cat([self.enorm(embedding), self.hnorm(hidden)], dim=-1))
        out, stats = self(merged, context)
        return self.shared_head.norm(out), stats
