"""DeepSeekMoE: shared and routed experts (report section 2.1.2, equation 12).

    h' = u + sum of shared FFNs(u) + sum over chosen i of g_i FFN_i(u)

The routed experts are the hot path of training: one autograd function covers gate/up, SwiGLU and down on expert-sorted
rows; sorting, moving and combining belong to the dispatcher, which expert parallelism replaces. No token is dropped.
The shared experts add unscaled (trap 2). Shape letters: n tokens, k chosen expert, e expert, m model width, f FFN width,
w rows, one per (token, chosen expert).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rorqual.config import ModelConfig
from rorqual.kernels import ops
from rorqual.model.layers import DenseMLP, GroupedLinear
from rorqual.model.router import Router, Routing


@dataclass(frozen=True)
class Dispatched:
    """Rows sorted by expert. `offs[e]` is the end of expert e's rows, `slots[t, j]` the row of token t's j-th choice."""

    rows: Float[Tensor, "w m"]
    offs: Int[Tensor, " e"]
    slots: Int[Tensor, "n k"]
    source: Int[Tensor, " w"]
    routing: Routing


class Dispatcher:
    """Sorts, moves and combines tokens on one device; expert parallelism swaps in one that also sends them."""

    def dispatch(self, x: Float[Tensor, "n m"], routing: Routing, num_experts: int) -> Dispatched:
        """Copies each token to one row per chosen expert, in expert order and, within an expert, token order."""
        source, slots, offs = ops.sort_by_expert(routing.indices, num_experts)
        return Dispatched(ops.gather_rows(x, source, slots), offs, slots, source, routing)

    def combine(self, rows: Float[Tensor, "w m"], sent: Dispatched) -> Float[Tensor, "n m"]:
        """Sum over a token's choices of gate value times expert output."""
        return ops.combine_rows(rows, sent.routing.weights, sent.slots, sent.source)


class Experts(nn.Module):
    """The routed experts, stacked: gate_up_proj [e, 2f, m] with the gate rows first, down_proj [e, m, f]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.moe_intermediate_size
        self.gate_up_proj = GroupedLinear(config.n_routed_experts, config.hidden_size, 2 * width)
        self.down_proj = GroupedLinear(config.n_routed_experts, width, config.hidden_size)

    def forward(self, rows: Float[Tensor, "w m"], offs: Int[Tensor, " e"]) -> Float[Tensor, "w m"]:
        """Fused where both layers are described by their three GEMMs; else composed, with equal results."""
        gate_up, down = self.gate_up_proj, self.down_proj
        if type(gate_up).forward is GroupedLinear.forward and type(down).forward is GroupedLinear.forward:
            return ExpertsFunction.apply(rows, gate_up.weight, down.weight, offs, gate_up, down)
        return down(ops.swiglu(*gate_up(rows, offs).chunk(2, dim=-1)), offs)


class ExpertsFunction(torch.autograd.Function):
    """y = down(silu(gate) * up) with (gate, up) = gate_up(x), per expert; the SwiGLU output is recomputed in backward
    (report section 3.3.3), so that only x and gate/up are kept. Calls nothing but the layers' three GEMMs and SwiGLU."""

    @staticmethod
    def forward(ctx, rows, gate_up_weight, down_weight, offs, gate_up, down):  # type: ignore[no-untyped-def]
        hidden = gate_up.fprop(rows, offs)
        ctx.save_for_backward(rows, hidden, offs)
        ctx.layers = gate_up, down
        return down.fprop(ops.swiglu_packed(hidden), offs)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        rows, hidden, offs = ctx.saved_tensors
        gate_up, down = ctx.layers
        dy = dy.contiguous()
        d_hidden, activation = ops.swiglu_packed_backward(down.dgrad(dy, offs), hidden)
        d_down = down.wgrad(dy, activation, offs) if ctx.needs_input_grad[2] else None
        d_gate_up = gate_up.wgrad(d_hidden, rows, offs) if ctx.needs_input_grad[1] else None
        d_rows = gate_up.dgrad(d_hidden, offs) if ctx.needs_input_grad[0] else None
        return d_rows, d_gate_up, d_down, None, None, None


class MoE(nn.Module):
    """The FFN of a MoE block: router, routed experts, shared experts, in the stages that a pipeline interleaves."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_experts = config.n_routed_experts
        self.gate = Router(config)
        self.experts = Experts(config)
        shared = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = DenseMLP(config.hidden_size, shared) if shared else None
        self.dispatcher = Dispatcher()

    def dispatch(self, u: Float[Tensor, "n m"], given: Int[Tensor, "n k"] | None = None) -> Dispatched:
        """Routes the normed tokens, to `given` experts where they are named (router.route), and sends them there."""
        return self.dispatcher.dispatch(u, self.gate(u, given), self.num_experts)

    def compute(self, sent: Dispatched) -> Float[Tensor, "w m"]:
        """The routed experts on their rows."""
        return self.experts(sent.rows, sent.offs)

    def combine(self, rows: Float[Tensor, "w m"], sent: Dispatched, u: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Weighted sum of the routed outputs, plus the shared experts'."""
        out = self.dispatcher.combine(rows, sent)
        return out if self.shared_experts is None else out + self.shared_experts(u)
