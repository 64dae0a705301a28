"""The compiled decode step: whole blocks in one C++ call for a few rows over a paged latent cache (report sections 2.1.1, 2.1.2, 3.4).

    step = DecodeStep(config, dict(model.state_dict()), inv_freq, amplitude, softmax_scale)
    hidden = step.trunk(ids, positions, tables, storage)          # [n m], after the final norm; the cache gets the rows' entries
    logits = step.logits(hidden)

FP32. A row's result does not depend on the other rows of the call, to the bit (decode.cpp), so batching and drafts cannot change an
answer. Shape letters: n rows, m model width, v vocabulary, t blocks of a table, l layers, k blocks, s slots, c entry width.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rorqual.config import ModelConfig
from rorqual.kernels import native

_LONGS = ("m", "h", "d", "r", "c", "v", "q_rank", "experts", "chosen", "groups", "kept_groups", "width", "shared", "dense", "block_size", "num_blocks",
          "softmax", "normalise", "bias_sum")  # fmt: skip
_FLOATS = ("eps", "scale", "route_scale")
_POINTERS = ("input_norm", "q_a", "q_norm", "q_b", "kv_a", "kv_norm", "kv_b", "o", "post_norm", "gate", "bias", "gate_up", "down", "ffn_gate", "ffn_up",
             "ffn_down")  # fmt: skip
_NAMES = {
    "input_norm": "input_layernorm.weight", "q_a": "self_attn.q_a_proj.weight", "q_norm": "self_attn.q_a_layernorm.weight", "q_b": "self_attn.q_b_proj.weight",
    "kv_a": "self_attn.kv_a_proj_with_mqa.weight", "kv_norm": "self_attn.kv_a_layernorm.weight", "kv_b": "self_attn.kv_b_proj.weight",
    "o": "self_attn.o_proj.weight", "post_norm": "post_attention_layernorm.weight", "gate": "mlp.gate.weight", "bias": "mlp.gate.e_score_correction_bias",
    "gate_up": "mlp.experts.gate_up_proj.weight", "down": "mlp.experts.down_proj.weight",
}  # fmt: skip
_FFN = {"ffn_gate": "gate_proj.weight", "ffn_up": "up_proj.weight", "ffn_down": "down_proj.weight"}


class _Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in _LONGS] + [(name, ctypes.c_float) for name in _FLOATS]


class _Weights(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in _POINTERS]


def usable(config: ModelConfig, tensors: Mapping[str, Tensor]) -> str | None:
    """None where the compiled step takes this model, else the reason."""
    if native.library().library is None:
        return native.library().detail
    plain = [
        name for name, value in tensors.items() if value.dtype != torch.float32 or value.device.type != "cpu" or not value.is_contiguous()
    ]
    if plain:
        return f"{plain[0]} is {tensors[plain[0]].dtype} on {tensors[plain[0]].device}; the compiled step takes FP32 in memory"
    if "model.embed_tokens.weight" not in tensors or any("codes" in name or ".lora_" in name for name in tensors):
        return "the weights are not stored as plain FP32 matrices"
    return None if config.kv_lora_rank else "the model has no latent attention"


class DecodeStep:
    """Holds pointers to a model's weights; they must stay where they are while it lives. See `usable` for what it takes."""

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, Tensor], inv_freq: Sequence[float], amplitude: float, softmax_scale: float
    ) -> None:
        self.config, self._tensors = config, dict(tensors)
        self._inv_freq, self._amplitude = torch.tensor(inv_freq, dtype=torch.float32), amplitude
        grouped = config.n_routed_experts > 0 and config.topk_method != "greedy" and config.n_group > 1
        moe = config.n_routed_experts > 0
        self._sizes = _Sizes(
            m=config.hidden_size, h=config.num_attention_heads, d=config.qk_nope_head_dim, r=config.qk_rope_head_dim, c=config.kv_lora_rank,
            v=config.v_head_dim, q_rank=config.q_lora_rank or 0, experts=config.n_routed_experts, chosen=config.num_experts_per_tok if moe else 0,
            groups=config.n_group if moe else 0, kept_groups=config.topk_group if grouped else 0, width=config.moe_intermediate_size if moe else 0,
            shared=config.n_shared_experts * config.moe_intermediate_size if moe else 0, dense=config.intermediate_size, block_size=0, num_blocks=0,
            softmax=config.scoring_func == "softmax", normalise=config.norm_topk_prob, bias_sum=config.topk_method == "noaux_tc",
            eps=config.rms_norm_eps, scale=softmax_scale, route_scale=config.routed_scaling_factor,
        )  # fmt: skip
        self._blocks = (_Weights * config.num_blocks)(*(self._block(layer) for layer in range(config.num_blocks)))
        self._scratch = torch.empty(0)
        self._library = native.library().library
        assert self._library is not None
        self._library.rq_decode_scratch.restype = ctypes.c_long

    def _block(self, layer: int) -> _Weights:
        prefix = f"model.layers.{layer}."
        found = {key: self._tensors.get(prefix + name) for key, name in _NAMES.items()}
        if self.config.q_lora_rank is None:
            found["q_b"] = self._tensors[prefix + "self_attn.q_proj.weight"]
        stem = "mlp.shared_experts." if self.config.is_moe(layer) else "mlp."
        found |= {key: self._tensors.get(prefix + stem + name) for key, name in _FFN.items()}
        return _Weights(**{key: None if value is None else value.data_ptr() for key, value in found.items()})

    def trunk(
        self, ids: Int[Tensor, " n"], positions: Int[Tensor, " n"], tables: Int[Tensor, "n t"], storage: Float[Tensor, "l k s c"],
        routes: Int[Tensor, "e n j"] | None = None,
    ) -> Float[Tensor, "n m"]:  # fmt: skip
        """States after the final norm. Row i is token ids[i] at positions[i] of the sequence whose blocks are tables[i].

        `routes`, where it is given, is filled with the experts that each MoE layer chose.
        """
        x = self._tensors["model.embed_tokens.weight"].index_select(0, ids)
        self._run(0, self.config.num_hidden_layers, x, positions, tables, storage, routes)
        return self.norm(x, "model.norm.weight")

    def mtp(
        self, module: int, hidden: Float[Tensor, "n m"], ids: Int[Tensor, " n"], positions: Int[Tensor, " n"], tables: Int[Tensor, "n t"],
        storage: Float[Tensor, "l k s c"],
    ) -> Float[Tensor, "n m"]:  # fmt: skip
        """MTP module `module` (0-based; report eq. 21-23) on states and the following tokens; its cache is layer num_hidden_layers + module."""
        layer = self.config.num_hidden_layers + module
        prefix = f"model.layers.{layer}."
        embedded = self._tensors["model.embed_tokens.weight"].index_select(0, ids)
        merged = torch.cat([self.norm(embedded, prefix + "enorm.weight"), self.norm(hidden.contiguous(), prefix + "hnorm.weight")], dim=1)
        x = self.linear(merged, self._tensors[prefix + "eh_proj.weight"])
        self._run(layer, layer + 1, x, positions, tables, storage)
        return self.norm(x, prefix + "shared_head.norm.weight")

    def logits(self, hidden: Float[Tensor, "n m"]) -> Float[Tensor, "n v"]:
        """The output head."""
        head = self._tensors.get("lm_head.weight")
        return self.linear(hidden.contiguous(), self._tensors["model.embed_tokens.weight"] if head is None else head)

    def norm(self, x: Float[Tensor, "n m"], name: str) -> Float[Tensor, "n m"]:
        """RMSNorm of every row with the weight of that name."""
        out = torch.empty(x.shape)
        native._call("rq_norm_rows", x, self._tensors[name], out, *x.shape, float(self.config.rms_norm_eps))
        return out

    def linear(self, x: Float[Tensor, "n i"], weight: Float[Tensor, "o i"]) -> Float[Tensor, "n o"]:
        """x W^T, each row by itself."""
        out = torch.empty(len(x), len(weight))
        native._call("rq_linear", x, weight, out, len(x), *reversed(weight.shape))
        return out

    def _run(
        self, first: int, last: int, x: Tensor, positions: Tensor, tables: Tensor, storage: Tensor, routes: Tensor | None = None
    ) -> None:
        n, longest = len(x), int(positions.max()) + 1
        tables, positions = tables.to(torch.int64).contiguous(), positions.to(torch.int64).contiguous()
        angle = positions.to(torch.float32).unsqueeze(1) * self._inv_freq
        cos, sin = angle.cos() * self._amplitude, angle.sin() * self._amplitude
        self._sizes.num_blocks, self._sizes.block_size = storage.shape[1], storage.shape[2]
        need = self._library.rq_decode_scratch(ctypes.byref(self._sizes), ctypes.c_long(n), ctypes.c_long(longest))  # type: ignore[union-attr]
        if len(self._scratch) < need:
            self._scratch = torch.empty(2 ** math.ceil(math.log2(need)))
        caches = (ctypes.c_void_p * (last - first))(*(storage[layer].data_ptr() for layer in range(first, last)))
        blocks = ctypes.byref(self._blocks, first * ctypes.sizeof(_Weights))
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, cos, sin, positions, tables)]
        self._library.rq_decode(  # type: ignore[union-attr]
            ctypes.byref(self._sizes), blocks, ctypes.c_long(last - first), *pointers, ctypes.c_long(tables.shape[1]), caches, ctypes.c_long(n),
            ctypes.c_long(longest), ctypes.c_void_p(self._scratch.data_ptr()), ctypes.c_void_p(None if routes is None else routes.data_ptr()),
        )  # fmt: skip
