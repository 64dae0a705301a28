"""A block's two halves over a flat list of tokens, for scoring: in one compiled pass each where its layers are plain FP32 matrices on a CPU,
else by the block's own layers. Both give the same, up to rounding; an adapter, a quantised weight or another device takes the second way.
"""

from __future__ import annotations

from torch import Tensor, nn

from rorqual.kernels import ffn, native, projections
from rorqual.kernels.tree import Tree, tree_attention
from rorqual.model.block import Block
from rorqual.model.layers import DenseMLP, GroupedLinear, Linear
from rorqual.model.mla import MLA, AttentionContext
from rorqual.model.moe import Dispatcher, MoE


def attended(block: Block, x: Tensor, context: AttentionContext, tree: Tree) -> Tensor:
    """[1, n, m] -> the residual stream of all tokens after attention; may use x's memory."""
    attention = block.self_attn
    rank, shared = attention.kv_lora_rank, (context.cos[0], context.sin[0], context.softmax_scale, tree)
    weights = _inputs(block)
    if weights is None or not native.usable(x):
        h = block.input_layernorm(x)
        c_kv, k_rope = attention.kv_a_proj_with_mqa(h).split([rank, attention.rope], dim=-1)
        q, kv = attention.up_project_q(attention.queries(h)), attention.kv_b_proj(attention.kv_a_layernorm(c_kv))
        return x + attention.o_proj(tree_attention(q[0], kv[0], k_rope[0], *shared).unsqueeze(0))
    flat, own_kv, own_rope = projections.attention_inputs(x[0], weights, block.input_layernorm.eps)
    out = tree_attention(flat.view(len(flat), attention.num_heads, -1), own_kv, own_rope, *shared)
    x = x.contiguous()
    projections.add_product(x[0], out, attention.o_proj.weight)
    return x


def fed(block: Block, x: Tensor) -> Tensor:
    """[1, n, m] -> the residual stream after the FFN or the experts; may use x's memory."""
    u, mlp = block.post_attention_layernorm(x), block.mlp
    dense = mlp.shared_experts if isinstance(mlp, MoE) else mlp
    experts = [mlp.experts.gate_up_proj, mlp.experts.down_proj] if isinstance(mlp, MoE) else []
    sends = isinstance(mlp, MoE) and type(mlp.dispatcher) is not Dispatcher
    if sends or not native.usable(x) or not _plain(*experts, *([] if dense is None else [dense.gate_proj, dense.up_proj, dense.down_proj])):
        sent = block.dispatch(u)
        return block.combine(x, block.experts(sent, u), sent, u)[0]
    x, flat = x.contiguous(), u[0].contiguous()
    if isinstance(mlp, MoE):
        routing = mlp.gate(flat)
        ffn.add_experts(x[0], flat, mlp.experts.gate_up_proj.weight, mlp.experts.down_proj.weight, routing.indices, routing.weights)
    if isinstance(dense, DenseMLP):
        ffn.add_feed_forward(x[0], flat, dense.gate_proj.weight, dense.up_proj.weight, dense.down_proj.weight)
    return x


def _inputs(block: Block) -> projections.InputWeights | None:
    """The plain weights up to attention and of the output, None where one is not plain."""
    attention: MLA = block.self_attn
    queries = [attention.q_proj] if attention.q_lora_rank is None else [attention.q_a_proj, attention.q_b_proj]
    norms = [block.input_layernorm, attention.kv_a_layernorm] + ([] if attention.q_lora_rank is None else [attention.q_a_layernorm])
    if not _plain(*queries, attention.kv_a_proj_with_mqa, attention.kv_b_proj, attention.o_proj) or len({norm.eps for norm in norms}) > 1:
        return None
    if not native.usable(*(norm.weight for norm in norms)):
        return None
    compressed = attention.q_lora_rank is not None
    return projections.InputWeights(
        block.input_layernorm.weight, attention.q_a_proj.weight if compressed else None, attention.q_a_layernorm.weight if compressed else None,
        queries[-1].weight, attention.kv_a_proj_with_mqa.weight, attention.kv_a_layernorm.weight, attention.kv_b_proj.weight,
    )  # fmt: skip


def _plain(*layers: nn.Module) -> bool:
    """Whether each is what it is by its weight alone."""
    return all(
        type(layer).forward in (Linear.forward, GroupedLinear.forward)
        and (not isinstance(layer, Linear) or type(layer).dense_weight is Linear.dense_weight)
        and (not isinstance(layer, GroupedLinear) or type(layer).fprop is GroupedLinear.fprop)
        and not layer._forward_hooks
        and isinstance(layer.weight, Tensor) and layer.weight.is_contiguous() and native.usable(layer.weight)
        for layer in layers
    )  # fmt: skip
