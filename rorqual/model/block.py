"""One pre-norm block: x += MLA(norm(x)); x += FFN(norm(x)) (report section 2.1), in the stages of section 3.2.

A plain `forward` composes the stages; a pipeline schedule interleaves those of two micro-batches. Dense, MoE and MTP blocks
are one family. Statistics leave as outputs and are never stored (trap 13).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from rorqual.config import ModelConfig
from rorqual.model.layers import DenseMLP, RMSNorm
from rorqual.model.mla import MLA, AttentionContext
from rorqual.model.moe import Dispatched, MoE
from rorqual.model.router import Routing


@dataclass(frozen=True)
class BlockStats:
    """What a MoE block did with its tokens: the routing, from which counts and the balance loss are taken."""

    layer: int
    routing: Routing


class Block(nn.Module):
    """A transformer block; `mlp` is a DenseMLP or a MoE as the configuration says for this layer number."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MLA(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: DenseMLP | MoE
        self.mlp = MoE(config) if config.is_moe(layer) else DenseMLP(config.hidden_size, config.intermediate_size)

    def attend(self, x: Float[Tensor, "b s m"], context: AttentionContext) -> tuple[Float[Tensor, "b s m"], Float[Tensor, "b s m"]]:
        """The residual stream after attention, and its norm, which the FFN takes."""
        x = x + self.self_attn(self.input_layernorm(x), context)
        return x, self.post_attention_layernorm(x)

    def dispatch(self, u: Float[Tensor, "b s m"], given: Int[Tensor, "n k"] | None = None) -> Dispatched | None:
        """Sends tokens to their experts, `given` ones where they are named; nothing to send in a dense block."""
        return self.mlp.dispatch(u.flatten(0, 1), given) if isinstance(self.mlp, MoE) else None

    def experts(self, sent: Dispatched | None, u: Float[Tensor, "b s m"]) -> Float[Tensor, "w m"] | Float[Tensor, "b s m"]:
        """The FFN proper: routed experts on their rows, or the dense FFN."""
        return self.mlp.compute(sent) if isinstance(self.mlp, MoE) and sent is not None else self.mlp(u)

    def combine(
        self, x: Float[Tensor, "b s m"], rows: Tensor, sent: Dispatched | None, u: Float[Tensor, "b s m"]
    ) -> tuple[Float[Tensor, "b s m"], BlockStats | None]:
        """Brings the experts' rows back into the residual stream."""
        if not isinstance(self.mlp, MoE) or sent is None:
            return x + rows, None
        return x + self.mlp.combine(rows, sent, u.flatten(0, 1)).view_as(x), BlockStats(self.layer, sent.routing)

    def forward(
        self, x: Float[Tensor, "b s m"], context: AttentionContext, given: Int[Tensor, "n k"] | None = None
    ) -> tuple[Float[Tensor, "b s m"], BlockStats | None]:
        x, u = self.attend(x, context)
        sent = self.dispatch(u, given)
        return self.combine(x, self.experts(sent, u), sent, u)
