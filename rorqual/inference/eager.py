"""The decode step without a compiler, in NumPy over the memory of the model's tensors (report sections 2.1.1, 2.1.2, 3.4).

    step = EagerStep(config, dict(model.state_dict()), inv_freq, amplitude, softmax_scale)
    hidden = step.trunk(ids, positions, tables, storage)          # as kernels.decode.DecodeStep, whose place it takes

A step of a small model consists of calls, and NumPy's cost a third of PyTorch's. A matrix is applied as one dot product per output: read from
memory in order, once, which is twice as fast as the library's product of a matrix and a vector when the weights are not in the cache. Every
output of every row is a sum by itself, whatever rows run beside it, so its bits depend on nothing else. Several rows go through a matrix part
by part, so that they read it from memory once. Shape letters as in kernels.decode, k chosen experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from rorqual.config import ModelConfig

_PART = 1 << 17
"""Elements of a matrix that are applied to all rows in turn: half a MiB, which stays in a core's cache."""

Array = NDArray[np.float32]


def usable(config: ModelConfig, tensors: Mapping[str, Tensor]) -> str | None:
    """None where this step takes the model, else the reason."""
    other = [name for name, value in tensors.items() if value.dtype != torch.float32 or value.device.type != "cpu"]
    if other:
        return f"{other[0]} is {tensors[other[0]].dtype} on {tensors[other[0]].device}; the step without a compiler takes FP32 in memory"
    if "model.embed_tokens.weight" not in tensors or any("codes" in name or ".lora_" in name for name in tensors):
        return "the weights are not stored as plain matrices"
    return None if config.kv_lora_rank else "the model has no latent attention"


class _Matrix:
    """A view of a weight [o i], in parts of about `_PART` elements."""

    def __init__(self, weight: Array) -> None:
        height = max(1, _PART // weight.shape[1])
        self._width = weight.shape[0]
        self._parts = [(slice(begin, begin + height), weight[begin : begin + height]) for begin in range(0, self._width, height)]

    def __call__(self, x: Array) -> Array:
        """x [n i] times the matrix turned: [n o]."""
        out = np.empty((len(x), self._width), np.float32)
        for where, part in self._parts:
            np.vecdot(part, x[:, None], out=out[:, where])
        return out

    def into(self, rows: Sequence[Array], out: Sequence[Array]) -> None:
        """The same, written to rows that are there."""
        for where, part in self._parts:
            for row, to in zip(rows, out, strict=True):
                np.vecdot(part, row, out=to[where])


@dataclass(frozen=True)
class _Block:
    """Views of one block's weights; None where the block has none."""

    input_norm: Array
    q_a: _Matrix | None
    q_norm: Array | None
    q_b: _Matrix
    kv_a: _Matrix
    kv_norm: Array
    w_uk: Array
    w_uv: Array
    o: _Matrix
    post_norm: Array
    gate: _Matrix | None
    bias: Array | None
    gate_up: list[_Matrix]
    down: list[_Matrix]
    ffn: tuple[_Matrix, _Matrix, _Matrix] | None


@dataclass(frozen=True)
class _Places:
    """Where the rows of one step stand: rotations [n 1 p], slots to write, and for each row the number of entries that it reads and where
    they lie in the pool: the first slot, or the blocks where these do not follow one another."""

    turns: NDArray[np.complex64]
    slots: list[int]
    seen: list[tuple[int, int, NDArray[np.int64] | None]]


class EagerStep:
    """Holds views of a model's weights, which must stay where they are while it lives; the interface is kernels.decode.DecodeStep's."""

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, Tensor], inv_freq: Sequence[float], amplitude: float, softmax_scale: float
    ) -> None:
        self.config, self._scale = config, softmax_scale
        self._weights = {name: value.detach().numpy() for name, value in tensors.items()}
        self._inv_freq, self._amplitude = torch.tensor(inv_freq, dtype=torch.float32), amplitude
        self._turns = self._rotations(config.max_position_embeddings)
        self._entry = config.kv_lora_rank + config.qk_rope_head_dim
        self._blocks = [self._block(layer) for layer in range(config.num_blocks)]
        head = self._weights.get("lm_head.weight")
        self._head = _Matrix(self._weights["model.embed_tokens.weight"] if head is None else head)
        self._final = self._weights["model.norm.weight"][None]
        self._modules = [self._module(layer) for layer in range(config.num_hidden_layers, config.num_blocks)]

    def _rotations(self, count: int) -> NDArray[np.complex64]:
        """Rotations of the first `count` positions as complex numbers."""
        angle = torch.arange(count, dtype=torch.float32).unsqueeze(1) * self._inv_freq
        return torch.complex(angle.cos() * self._amplitude, angle.sin() * self._amplitude).numpy()

    def _module(self, layer: int) -> tuple[_Matrix, Array, Array, Array]:
        """(eh_proj, enorm, hnorm, shared_head.norm) of an MTP module."""
        weight = {name: self._weights[f"model.layers.{layer}.{name}.weight"] for name in ("eh_proj", "enorm", "hnorm", "shared_head.norm")}
        return _Matrix(weight["eh_proj"]), weight["enorm"][None], weight["hnorm"][None], weight["shared_head.norm"][None]

    def _block(self, layer: int) -> _Block:
        prefix, c = f"model.layers.{layer}.", self.config
        stem = "mlp.shared_experts." if c.is_moe(layer) else "mlp."

        def found(name: str) -> Array | None:
            return self._weights.get(f"{prefix}{name}")

        def row(name: str) -> Array | None:
            return None if (weight := found(name)) is None else weight[None]

        def matrix(name: str) -> _Matrix:
            return _Matrix(self._weights[f"{prefix}{name}.weight"])

        kv_b = self._weights[prefix + "self_attn.kv_b_proj.weight"].reshape(c.num_attention_heads, -1, c.kv_lora_rank)
        gate_up, down = (
            [] if (stacked := found(f"mlp.experts.{name}.weight")) is None else [_Matrix(one) for one in stacked]
            for name in ("gate_up_proj", "down_proj")
        )
        compressed, gate = c.q_lora_rank is not None, found("mlp.gate.weight")
        return _Block(
            self._weights[prefix + "input_layernorm.weight"][None], matrix("self_attn.q_a_proj") if compressed else None,
            row("self_attn.q_a_layernorm.weight"), matrix("self_attn.q_b_proj" if compressed else "self_attn.q_proj"),
            matrix("self_attn.kv_a_proj_with_mqa"), self._weights[prefix + "self_attn.kv_a_layernorm.weight"][None],
            kv_b[:, : c.qk_nope_head_dim], kv_b[:, c.qk_nope_head_dim :], matrix("self_attn.o_proj"),
            self._weights[prefix + "post_attention_layernorm.weight"][None], None if gate is None else _Matrix(gate),
            row("mlp.gate.e_score_correction_bias"), gate_up, down,
            (matrix(stem + "gate_proj"), matrix(stem + "up_proj"), matrix(stem + "down_proj")) if found(stem + "up_proj.weight") is not None else None,
        )  # fmt: skip

    def trunk(
        self, ids: Int[Tensor, " n"], positions: Int[Tensor, " n"], tables: Int[Tensor, "n t"], storage: Float[Tensor, "l k s c"],
        routes: Int[Tensor, "e n j"] | None = None,
    ) -> Float[Tensor, "n m"]:  # fmt: skip
        """See kernels.decode.DecodeStep.trunk."""
        x = self._weights["model.embed_tokens.weight"][ids.numpy()]
        self._run(0, self.config.num_hidden_layers, x, positions, tables, storage, routes)
        return torch.from_numpy(self._norm(x, self._final))

    def mtp(
        self, module: int, hidden: Float[Tensor, "n m"], ids: Int[Tensor, " n"], positions: Int[Tensor, " n"], tables: Int[Tensor, "n t"],
        storage: Float[Tensor, "l k s c"],
    ) -> Float[Tensor, "n m"]:  # fmt: skip
        """See kernels.decode.DecodeStep.mtp."""
        layer = self.config.num_hidden_layers + module
        eh_proj, enorm, hnorm, final = self._modules[module]
        embedded = self._norm(self._weights["model.embed_tokens.weight"][ids.numpy()], enorm)
        x = eh_proj(np.concatenate([embedded, self._norm(hidden.detach().contiguous().numpy(), hnorm)], axis=1))
        self._run(layer, layer + 1, x, positions, tables, storage, None)
        return torch.from_numpy(self._norm(x, final))

    def logits(self, hidden: Float[Tensor, "n m"]) -> Float[Tensor, "n v"]:
        """The output head."""
        return torch.from_numpy(self._head(hidden.detach().contiguous().numpy()))

    def _norm(self, x: Array, weight: Array) -> Array:
        """RMSNorm of every row; weight [1 m]."""
        squares, width, eps = np.vecdot(x, x), x.shape[1], self.config.rms_norm_eps
        if len(x) == 1:  # the same in Python's own FP64, for less
            out = x * (1 / math.sqrt(float(squares[0]) / width + eps))
        else:
            out = x * (1 / np.sqrt(squares.astype(np.float64) / width + eps)).astype(np.float32)[:, None]
        out *= weight
        return out

    def _places(self, positions: Tensor, tables: Tensor, size: int) -> _Places:
        at = positions.tolist()
        if max(at) >= len(self._turns):  # padding of a row that is scored up to the model's last position
            self._turns = self._rotations(2 * (max(at) + 1))
        slots, seen = [], []
        for position, table in zip(at, tables, strict=True):
            blocks = table[: position // size + 1].tolist()
            adjacent = blocks == list(range(blocks[0], blocks[0] + len(blocks)))
            slots.append(blocks[-1] * size + position % size)
            seen.append((position + 1, blocks[0] * size, None if adjacent else np.array(blocks)))
        return _Places(self._turns[at][:, None], slots, seen)

    def _run(self, first: int, last: int, x: Array, positions: Tensor, tables: Tensor, storage: Tensor, routes: Tensor | None) -> None:
        """Blocks first..last on the rows of x, in place."""
        cache, moe = storage.numpy(), 0
        places = self._places(positions, tables, cache.shape[2])
        with np.errstate(all="ignore"):  # exp(-x) of a large gate is infinite, and its sigmoid rightly 0
            for layer in range(first, last):
                w = self._blocks[layer]
                x += self._attention(w, self._norm(x, w.input_norm), places, cache[layer])
                u = self._norm(x, w.post_norm)
                if w.ffn is not None:
                    gate, up, down = w.ffn
                    x += down(_swiglu(gate(u), up(u)))
                if w.gate is not None:
                    chosen, weights = self._route(w.gate(u), w.bias)
                    x += self._experts(w, u, chosen, weights)
                    if routes is not None:
                        routes[moe] = torch.from_numpy(chosen)
                    moe += 1

    def _attention(self, w: _Block, u: Array, places: _Places, cache: Array) -> Array:
        """Equations 1-11 in absorbed form: [n m]; the cache gets the rows' entries."""
        c, n = self.config, len(u)
        latent, heads, nope = c.kv_lora_rank, c.num_attention_heads, c.qk_nope_head_dim
        made, pool = w.kv_a(u), cache.reshape(-1, self._entry)
        made[:, :latent] = self._norm(made[:, :latent], w.kv_norm)
        turned = _pairs(made[:, latent:])
        turned *= places.turns[:, 0]
        for slot, entry in zip(places.slots, made, strict=True):
            pool[slot] = entry
        if w.q_a is not None and w.q_norm is not None:
            u = self._norm(w.q_a(u), w.q_norm)
        q = w.q_b(u)
        q *= self._scale
        q = q.reshape(n, heads, 1, -1)
        query, seen = np.empty((n, heads, self._entry), np.float32), np.empty((n, heads, 1, latent), np.float32)
        np.matmul(q[..., :nope], w.w_uk, out=query[:, :, None, :latent])
        np.multiply(_pairs(q[:, :, 0, nope:]), places.turns, out=_pairs(query[..., latent:]))
        for one, out, (count, start, blocks) in zip(query, seen[:, :, 0], places.seen, strict=True):
            entries = pool[start : start + count] if blocks is None else cache[blocks].reshape(-1, self._entry)[:count]
            share = np.dot(one, entries.T)
            share -= np.maximum.reduce(share, axis=1, keepdims=True)
            np.exp(share, out=share)
            np.divide(np.dot(share, entries[:, :latent]), np.add.reduce(share, axis=1, keepdims=True), out=out)
        return w.o(np.vecdot(w.w_uv, seen).reshape(n, -1))

    def _route(self, logits: Array, bias: Array | None) -> tuple[NDArray[np.int64], Array]:
        """(chosen experts [n k], gate values [n k]): equations 13-16, as model.router.route; of equals the first."""
        c = self.config
        if c.scoring_func == "sigmoid":
            scores = np.reciprocal(_one_and_exp(logits))
        else:
            scores = np.exp(logits - logits.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
        choice = np.negative(scores if bias is None else scores + bias)  # smallest first
        each = np.arange(len(logits))[:, None]
        if c.topk_method != "greedy" and c.n_group > 1:
            grouped = choice.reshape(len(choice), c.n_group, -1)
            best = np.sort(grouped, axis=2)[:, :, : 2 if c.topk_method == "noaux_tc" else 1].sum(axis=2)
            grouped[each, best.argsort(axis=1, kind="stable")[:, c.topk_group :]] = np.inf
        chosen = choice.argsort(axis=1, kind="stable")[:, : c.num_experts_per_tok]
        weights = scores[each, chosen]
        if c.norm_topk_prob:
            weights /= weights.sum(axis=1, keepdims=True) + np.float32(1e-20)
        weights *= c.routed_scaling_factor
        return chosen, weights

    def _experts(self, w: _Block, u: Array, chosen: NDArray[np.int64], weights: Array) -> Array:
        """Equation 12: the routed experts' sum [n m]; each expert's weights are read once for all of its rows."""
        (n, k), width = chosen.shape, self.config.moe_intermediate_size
        held: dict[int, list[int]] = {}
        for slot, expert in enumerate(chosen.ravel().tolist()):
            held.setdefault(expert, []).append(slot)
        hidden, made = np.empty((n * k, 2 * width), np.float32), np.empty((n * k, u.shape[1]), np.float32)
        for expert, slots in held.items():
            w.gate_up[expert].into([u[slot // k] for slot in slots], [hidden[slot] for slot in slots])
        active = _swiglu(hidden[:, :width], hidden[:, width:])
        for expert, slots in held.items():
            w.down[expert].into([active[slot] for slot in slots], [made[slot] for slot in slots])
        return np.matmul(weights[:, None], made.reshape(n, k, -1))[:, 0]


def _pairs(x: Array) -> NDArray[np.complex64]:
    """A view of adjacent pairs as complex numbers, which a rotation multiplies."""
    return x.view(np.complex64)


def _one_and_exp(x: Array) -> Array:
    """1 + exp(-x)."""
    out = np.negative(x)
    np.exp(out, out=out)
    out += 1
    return out


def _swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) * up."""
    out = _one_and_exp(gate)
    np.divide(gate, out, out=out)
    out *= up
    return out
