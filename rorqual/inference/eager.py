"""The decode step in plain PyTorch, for machines without a compiler: few calls a block, no modules (report sections 2.1.1, 2.1.2, 3.4).

    step = EagerStep(config, dict(model.state_dict()), inv_freq, amplitude, softmax_scale)
    hidden = step.trunk(ids, positions, tables, storage)          # as kernels.decode.DecodeStep, whose place it takes

A row's result does not depend on the other rows where the library's GEMM gives a row the same sums for 4 rows as for more; with fewer than
`least_rows` rows, rows are repeated, because one-row kernels sum in another order. `least_rows` is found by a self-test. Attention runs row by
row over exactly the entries that the row sees, so no length of a neighbour enters. Operations are chosen for their cost per call, a
microsecond or two, which is what a step of a small model consists of. Shape letters as in kernels.decode, w rows sorted by expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rorqual.config import ModelConfig

_ROWS = 4  # from here up a GEMM's row does not depend on the number of rows, where the self-test confirms it


def usable(config: ModelConfig, tensors: Mapping[str, Tensor]) -> str | None:
    """None where this step takes the model, else the reason."""
    other = [name for name, value in tensors.items() if value.dtype != torch.float32 or value.device.type != "cpu"]
    if other:
        return f"{other[0]} is {tensors[other[0]].dtype} on {tensors[other[0]].device}; the lean PyTorch step takes FP32 in memory"
    if "model.embed_tokens.weight" not in tensors or any("codes" in name or ".lora_" in name for name in tensors):
        return "the weights are not stored as plain matrices"
    if config.kv_lora_rank % 2 or config.qk_nope_head_dim % 2:
        return f"kv_lora_rank ({config.kv_lora_rank}) and qk_nope_head_dim ({config.qk_nope_head_dim}) must be even: rotations run on pairs in place"
    return None if config.kv_lora_rank else "the model has no latent attention"


@dataclass(frozen=True)
class _Block:
    """Views of one block's weights, turned so that a row times a view is the projection; None where the block has none."""

    input_norm: Tensor
    q_a: Tensor | None
    q_norm: Tensor | None
    q_b: Tensor
    kv_a: Tensor
    kv_norm: Tensor
    w_uk: Tensor
    w_uv: Tensor
    o: Tensor
    post_norm: Tensor
    gate: Tensor | None
    bias: Tensor | None
    gate_up: list[Tensor]
    down: list[Tensor]
    ffn: tuple[Tensor, Tensor, Tensor] | None


@dataclass(frozen=True)
class _Places:
    """Where the rows of one step stand: rotations, slots to write, and each row's blocks and number of entries to read."""

    turns: Tensor
    slots: Tensor
    blocks: list[Tensor]
    counts: list[int]


class EagerStep:
    """Holds views of a model's weights, which must stay where they are while it lives; the interface is kernels.decode.DecodeStep's."""

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, Tensor], inv_freq: Sequence[float], amplitude: float, softmax_scale: float
    ) -> None:
        self.config, self._tensors, self._scale = config, dict(tensors), softmax_scale
        self._inv_freq, self._amplitude = torch.tensor(inv_freq, dtype=torch.float32), amplitude
        self._turns = self._rotations(config.max_position_embeddings)
        self._entry = config.kv_lora_rank + config.qk_rope_head_dim
        self._blocks = [self._block(layer) for layer in range(config.num_blocks)]
        self.least_rows = 1 if all(_same_row(value.t()) for value in self._shapes()) else _ROWS

    def _rotations(self, count: int) -> Tensor:
        """Rotations of the first `count` positions as complex numbers."""
        angle = torch.arange(count, dtype=torch.float32).unsqueeze(1) * self._inv_freq
        return torch.complex(angle.cos() * self._amplitude, angle.sin() * self._amplitude)

    def _shapes(self) -> list[Tensor]:
        """One matrix of every shape."""
        return list({value.shape: value for value in self._tensors.values() if value.dim() == 2}.values())

    def _block(self, layer: int) -> _Block:
        prefix, c = f"model.layers.{layer}.", self.config
        stem = "mlp.shared_experts." if c.is_moe(layer) else "mlp."

        def found(name: str) -> Tensor | None:
            return self._tensors.get(f"{prefix}{name}")

        def turned(name: str) -> Tensor:
            return self._tensors[f"{prefix}{name}.weight"].t()

        w_uk, w_uv = _absorbed(self._tensors[prefix + "self_attn.kv_b_proj.weight"], c)
        gate_up, down = (
            [] if (stacked := found(f"mlp.experts.{name}.weight")) is None else list(stacked.transpose(1, 2).unbind(0))
            for name in ("gate_up_proj", "down_proj")
        )
        compressed = c.q_lora_rank is not None
        gate = found("mlp.gate.weight")
        return _Block(
            self._tensors[prefix + "input_layernorm.weight"], turned("self_attn.q_a_proj") if compressed else None,
            found("self_attn.q_a_layernorm.weight"), turned("self_attn.q_b_proj" if compressed else "self_attn.q_proj"),
            turned("self_attn.kv_a_proj_with_mqa"), self._tensors[prefix + "self_attn.kv_a_layernorm.weight"], w_uk, w_uv, turned("self_attn.o_proj"),
            self._tensors[prefix + "post_attention_layernorm.weight"], None if gate is None else gate.t(), found("mlp.gate.e_score_correction_bias"),
            gate_up, down,
            (turned(stem + "gate_proj"), turned(stem + "up_proj"), turned(stem + "down_proj")) if found(stem + "up_proj.weight") is not None else None,
        )  # fmt: skip

    @torch.inference_mode()
    def trunk(
        self, ids: Int[Tensor, " n"], positions: Int[Tensor, " n"], tables: Int[Tensor, "n t"], storage: Float[Tensor, "l k s c"],
        routes: Int[Tensor, "e n j"] | None = None,
    ) -> Float[Tensor, "n m"]:  # fmt: skip
        """See kernels.decode.DecodeStep.trunk."""
        x = self._padded(self._tensors["model.embed_tokens.weight"].index_select(0, ids))
        x = self._run(0, self.config.num_hidden_layers, x, positions, tables, storage, routes)
        return self.norm(x[: len(ids)], self._tensors["model.norm.weight"])

    @torch.inference_mode()
    def mtp(
        self, module: int, hidden: Float[Tensor, "n m"], ids: Int[Tensor, " n"], positions: Int[Tensor, " n"], tables: Int[Tensor, "n t"],
        storage: Float[Tensor, "l k s c"],
    ) -> Float[Tensor, "n m"]:  # fmt: skip
        """See kernels.decode.DecodeStep.mtp."""
        layer = self.config.num_hidden_layers + module
        weight = {name: self._tensors[f"model.layers.{layer}.{name}.weight"] for name in ("enorm", "hnorm", "eh_proj", "shared_head.norm")}
        embedded = self._tensors["model.embed_tokens.weight"].index_select(0, ids)
        merged = torch.cat([self.norm(embedded, weight["enorm"]), self.norm(hidden, weight["hnorm"])], dim=1)
        x = torch.mm(self._padded(merged), weight["eh_proj"].t())
        return self.norm(self._run(layer, layer + 1, x, positions, tables, storage, None)[: len(ids)], weight["shared_head.norm"])

    @torch.inference_mode()
    def logits(self, hidden: Float[Tensor, "n m"]) -> Float[Tensor, "n v"]:
        """The output head."""
        head = self._tensors.get("lm_head.weight")
        weight = self._tensors["model.embed_tokens.weight"] if head is None else head
        return torch.mm(self._padded(hidden), weight.t())[: len(hidden)]

    def norm(self, x: Float[Tensor, "n m"], weight: Float[Tensor, " m"]) -> Float[Tensor, "n m"]:
        """RMSNorm of every row."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return length.square_().mul_(1 / x.shape[-1]).add_(self.config.rms_norm_eps).rsqrt_().mul(x).mul_(weight)

    def _padded(self, x: Tensor) -> Tensor:
        missing = self.least_rows - len(x)
        return x if missing <= 0 else torch.cat([x, x[-1:].expand(missing, -1)])

    def _run(self, first: int, last: int, x: Tensor, positions: Tensor, tables: Tensor, storage: Tensor, routes: Tensor | None) -> Tensor:
        size, at = storage.shape[2], positions.tolist()
        slots = tables.gather(1, (positions // size).unsqueeze(1)).squeeze(1) * size + positions % size
        blocks = [table[: position // size + 1] for table, position in zip(tables.unbind(0), at, strict=True)]
        if max(at) >= len(self._turns):  # padding of a row that is scored up to the model's last position
            self._turns = self._rotations(2 * (max(at) + 1))
        places = _Places(self._turns.index_select(0, positions).unsqueeze(1), slots, blocks, [position + 1 for position in at])
        moe = 0
        for layer in range(first, last):
            w = self._blocks[layer]
            x = torch.addmm(x, self._attention(w, self.norm(x, w.input_norm), places, storage[layer]), w.o)
            u = self.norm(x, w.post_norm)
            if w.ffn is not None:
                gate, up, down = w.ffn
                x = torch.addmm(x, torch.nn.functional.silu(_apart(u, gate)).mul_(torch.mm(u, up)), down)
            if w.gate is not None:
                self._experts(w, u, x, len(at), None if routes is None else routes[moe])
                moe += 1
        return x

    def _attention(self, w: _Block, u: Tensor, places: _Places, cache: Tensor) -> Tensor:
        """Equations 1-11 in absorbed form, before the output projection: [rows, heads * v]; the cache gets the rows' entries."""
        c, n = self.config, len(places.counts)
        latent, nope = c.kv_lora_rank, c.qk_nope_head_dim
        made = torch.mm(u, w.kv_a)[:n]
        made[:, :latent] = self.norm(made[:, :latent], w.kv_norm)
        turned = _pairs(made[:, None, latent:])
        turned.mul_(places.turns)
        cache.view(-1, self._entry).index_copy_(0, places.slots, made)
        if w.q_a is not None and w.q_norm is not None:
            u = self.norm(torch.mm(u, w.q_a), w.q_norm)
        q = torch.mm(u, w.q_b)[:n].view(n, c.num_attention_heads, -1)
        _pairs(q[:, :, nope:]).mul_(places.turns)
        out = torch.zeros(len(u), c.num_attention_heads * c.v_head_dim)
        heads = out.view(len(u), c.num_attention_heads, 1, -1)
        for row, (blocks, count) in enumerate(zip(places.blocks, places.counts, strict=True)):
            entries = cache.index_select(0, blocks).view(-1, self._entry)[:count]
            plain, rotated = q[row].split([nope, c.qk_rope_head_dim], dim=1)
            query = torch.cat([torch.bmm(plain.unsqueeze(1), w.w_uk).squeeze(1), rotated], dim=1)
            share = torch.mm(query, entries.t()).mul_(self._scale).softmax(dim=-1)
            heads[row] = torch.bmm(torch.mm(share, entries[:, :latent]).unsqueeze(1), w.w_uv)
        return out

    def _route(self, w: _Block, u: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """(chosen experts [n k], gate values [n k]): equations 13-16, as model.router.route."""
        c = self.config
        assert w.gate is not None
        logits = _apart(u, w.gate)[:n]
        scores = logits.sigmoid_() if c.scoring_func == "sigmoid" else logits.softmax(dim=-1)
        choice = scores if w.bias is None else scores + w.bias
        if c.topk_method != "greedy" and c.n_group > 1:
            grouped = choice.view(n, c.n_group, -1)
            counted = min(2, grouped.shape[-1]) if c.topk_method == "noaux_tc" else 1
            best = grouped.topk(counted, dim=-1)[0].sum(-1)
            left_out = torch.ones_like(best, dtype=torch.bool).scatter_(1, best.topk(c.topk_group, dim=-1)[1], False)
            choice = grouped.masked_fill(left_out.unsqueeze(-1), float("-inf")).view_as(choice)
        chosen = choice.topk(c.num_experts_per_tok, dim=-1)[1]
        weights = scores.gather(1, chosen)
        if c.norm_topk_prob:
            weights = weights.div_(weights.sum(dim=-1, keepdim=True).add_(1e-20))
        return chosen, weights.mul_(c.routed_scaling_factor)

    def _experts(self, w: _Block, u: Tensor, x: Tensor, n: int, routes: Tensor | None) -> None:
        """Equation 12: adds the routed experts to x; rows grouped by expert, each expert's weights read once."""
        chosen, weights = self._route(w, u, n)
        if routes is not None:
            routes.copy_(chosen)
        k, width = self.config.num_experts_per_tok, self.config.moe_intermediate_size
        slots: dict[int, list[int]] = {}
        for slot, expert in enumerate(chosen.flatten().tolist()):
            slots.setdefault(expert, []).append(slot)
        source, sizes, place, at = [], [], [0] * (n * k), 0
        for held in slots.values():
            for number, slot in enumerate(held):
                place[slot] = at + number
            size = max(len(held), self.least_rows)
            source += [slot // k for slot in held] + [held[-1] // k] * (size - len(held))
            sizes.append(size)
            at += size
        rows = u.index_select(0, torch.tensor(source))
        hidden, made = torch.empty(at, 2 * width), torch.empty(at, u.shape[1])
        for expert, part, into in zip(slots, rows.split(sizes), hidden.split(sizes), strict=True):
            torch.mm(part, w.gate_up[expert], out=into)
        active = torch.nn.functional.silu(hidden[:, :width]).mul_(hidden[:, width:])  # halves of rows: not adjacent either
        for expert, part, into in zip(slots, active.split(sizes), made.split(sizes), strict=True):
            torch.mm(part, w.down[expert], out=into)
        parts = made.index_select(0, torch.tensor(place)).mul_(weights.view(-1, 1)).view(n, k, -1)
        for part in parts.unbind(1):
            x[:n] += part


def _absorbed(kv_b: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """(W^UK [h d c], W^UV turned to [h c v]) as views of kv_b_proj."""
    w_uk, w_uv = kv_b.view(config.num_attention_heads, -1, config.kv_lora_rank).split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
    return w_uk, w_uv.transpose(1, 2)


def _pairs(x: Tensor) -> Tensor:
    """A view of adjacent pairs as complex numbers, which a rotation multiplies."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _apart(x: Tensor, weight: Tensor) -> Tensor:
    """x times weight, rows not adjacent in memory, so that elementwise functions go through each row by itself."""
    into = torch.empty(len(x), weight.shape[1] + 1)[:, :-1]
    return torch.mm(x, weight, out=into)


def _same_row(weight: Float[Tensor, "i o"]) -> bool:
    """Whether the library gives one row alone the bits that it gives it among sixteen."""
    x = torch.sin(torch.arange(16 * weight.shape[0], dtype=torch.float32)).view(16, -1)
    return torch.equal(torch.mm(x[:1], weight)[0], torch.mm(x, weight)[0])
