"""The compiled decode step: whole blocks in one C++ call for a few rows over a paged latent cache (report sections 2.1.1, 2.1.2, 3.4).

    step = DecodeStep(config, dict(model.state_dict()), inv_freq, amplitude, softmax_scale)
    hidden = step.trunk(ids, positions, tables, storage)          # [n m], after the final norm; the cache gets the rows' entries
    logits = step.logits(hidden)

Arithmetic is FP32. Matrices are read from panels of 16 outputs (kernels.panels), copies that are made once and again by `refresh`, in FP32,
BF16 (exact for BF16 weights), FP16 or INT8. A row's result does not depend on the other rows of the call, to the bit (decode.cpp), so batching
and drafts cannot change an answer. Shape letters: n rows, m model width, v vocabulary, t blocks of a table, l layers, k blocks, s slots,
c entry width, i inputs, o outputs.
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
from rorqual.kernels.memory import available_bytes
from rorqual.kernels.panels import Panels

_LONGS = ("m", "h", "d", "r", "c", "v", "q_rank", "experts", "chosen", "groups", "kept_groups", "width", "shared", "dense", "block_size", "num_blocks",
          "softmax", "normalise", "bias_sum")  # fmt: skip
_FLOATS = ("eps", "scale", "route_scale")
_POINTERS = ("input_norm", "q_norm", "kv_norm", "post_norm", "bias")
_MATRICES = ("w_uk", "w_uv", "q_a", "q_b", "kv_a", "o", "gate", "gate_up", "down", "ffn_gate", "ffn_up", "ffn_down")
_NAMES = {
    "input_norm": "input_layernorm.weight", "q_a": "self_attn.q_a_proj.weight", "q_norm": "self_attn.q_a_layernorm.weight", "q_b": "self_attn.q_b_proj.weight",
    "kv_a": "self_attn.kv_a_proj_with_mqa.weight", "kv_norm": "self_attn.kv_a_layernorm.weight", "w_uk": "self_attn.w_uk", "w_uv": "self_attn.w_uv",
    "o": "self_attn.o_proj.weight", "post_norm": "post_attention_layernorm.weight", "gate": "mlp.gate.weight", "bias": "mlp.gate.e_score_correction_bias",
    "gate_up": "mlp.experts.gate_up_proj.weight", "down": "mlp.experts.down_proj.weight",
}  # fmt: skip
_FFN = {"ffn_gate": "gate_proj.weight", "ffn_up": "up_proj.weight", "ffn_down": "down_proj.weight"}


class _Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in _LONGS] + [(name, ctypes.c_float) for name in _FLOATS]


class _Matrix(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("kind", ctypes.c_long)]


class _Weights(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_void_p) for name in _POINTERS), *((name, _Matrix) for name in _MATRICES)]


_SHARE = 0.8
"""Part of the free memory that the copies may take."""


def usable(config: ModelConfig, tensors: Mapping[str, Tensor]) -> str | None:
    """None where the compiled step takes this model, else the reason."""
    if native.library().library is None:
        return native.library().detail
    for name, value in tensors.items():
        if value.dtype not in (torch.float32, torch.bfloat16) or value.device.type != "cpu" or not value.is_contiguous():
            return f"{name} is {value.dtype} on {value.device}; the compiled step takes FP32 or BF16 in memory"
    if "model.embed_tokens.weight" not in tensors or any("codes" in name or ".lora_" in name for name in tensors):
        return "the weights are not stored as plain FP32 or BF16 matrices"
    copies, free = sum(value.nbytes for value in tensors.values() if value.dim() > 1), available_bytes()
    if free is not None and copies > _SHARE * free:
        return f"its copies of the weights ({copies / 1e9:.1f} GB) would leave too little of the {free / 1e9:.1f} GB that are free"
    return None if config.kv_lora_rank else "the model has no latent attention"


class DecodeStep:
    """Holds a model's weights; they must stay where they are while it lives, and `refresh` follows when their values change.

    weights: type of the panels, "fp32", "bf16", "fp16" or "int8". See `usable` for what it takes.
    """

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, Tensor], inv_freq: Sequence[float], amplitude: float, softmax_scale: float, weights: str = "fp32",
    ) -> None:  # fmt: skip
        self.config, self._source, self._tensors = config, dict(tensors), dict(tensors)
        for name in [name for name in tensors if name.endswith("kv_b_proj.weight")]:  # W^UK, turned, and W^UV of each head
            whole = self._source.pop(name).view(config.num_attention_heads, -1, config.kv_lora_rank)
            stem = name.removesuffix("kv_b_proj.weight")
            self._source[stem + "w_uk"] = whole[:, : config.qk_nope_head_dim].transpose(1, 2)
            self._source[stem + "w_uv"] = whole[:, config.qk_nope_head_dim :]
        stored = {name: value for name, value in self._source.items() if value.dim() > 1}
        if "lm_head.weight" in stored:
            stored.pop("model.embed_tokens.weight")
        self._panels = {name: Panels(value, weights, halves=name.endswith("gate_up_proj.weight")) for name, value in stored.items()}
        for name, value in tensors.items():  # what is read element by element is FP32
            if value.dim() == 1 and value.dtype != torch.float32:
                self._tensors[name] = value.float()
        angle = torch.arange(config.max_position_embeddings, dtype=torch.float32).unsqueeze(1) * torch.tensor(inv_freq, dtype=torch.float32)
        self._cos, self._sin = angle.cos() * amplitude, angle.sin() * amplitude
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
        names = {key: prefix + name for key, name in _NAMES.items()}
        if self.config.q_lora_rank is None:
            names["q_b"] = prefix + "self_attn.q_proj.weight"
        stem = "mlp.shared_experts." if self.config.is_moe(layer) else "mlp."
        names |= {key: prefix + stem + name for key, name in _FFN.items()}
        found = {key: self._tensors[name] for key, name in names.items() if name in self._tensors}
        matrices = {key: self._matrix(names[key]) for key in _MATRICES if key in names and names[key] in self._panels}
        return _Weights(**{key: found[key].data_ptr() for key in _POINTERS if key in found}, **matrices)  # type: ignore[arg-type]

    def _matrix(self, name: str) -> _Matrix:
        panels = self._panels[name]
        return _Matrix(panels.values.data_ptr(), None if panels.scale is None else panels.scale.data_ptr(), panels.kind)

    def refresh(self) -> None:
        """Takes the weights' present values into the panels."""
        for name, panels in self._panels.items():
            panels.fill(self._source[name])
        for name, value in self._source.items():
            if value.dim() == 1 and value is not self._tensors[name]:
                self._tensors[name].copy_(value)

    @property
    def lossy(self) -> bool:
        """Whether the panels hold other values than the weights."""
        return any(panels.lossy(self._source[name]) for name, panels in self._panels.items())

    def weight_error(self) -> float:
        """Root of the sum of squared differences of the matrices from the weights over that of the weights' squares."""
        pairs = [(panels, self._source[name]) for name, panels in self._panels.items()]
        squares = [float(weight.detach().float().square().sum()) for _, weight in pairs]
        parts = [panels.relative_error(weight) ** 2 * square for (panels, weight), square in zip(pairs, squares, strict=True)]
        return math.sqrt(sum(parts) / max(sum(squares), 1e-30))

    def trunk(
        self, ids: Int[Tensor, " n"], positions: Int[Tensor, " n"], tables: Int[Tensor, "n t"], storage: Float[Tensor, "l k s c"],
        routes: Int[Tensor, "e n j"] | None = None,
    ) -> Float[Tensor, "n m"]:  # fmt: skip
        """States after the final norm. Row i is token ids[i] at positions[i] of the sequence whose blocks are tables[i].

        `routes`, where it is given, is filled with the experts that each MoE layer chose.
        """
        x = self._tensors["model.embed_tokens.weight"].index_select(0, ids).float()
        self._run(0, self.config.num_hidden_layers, x, positions, tables, storage, routes)
        return self.norm(x, "model.norm.weight")

    def mtp(
        self, module: int, hidden: Float[Tensor, "n m"], ids: Int[Tensor, " n"], positions: Int[Tensor, " n"], tables: Int[Tensor, "n t"],
        storage: Float[Tensor, "l k s c"],
    ) -> Float[Tensor, "n m"]:  # fmt: skip
        """MTP module `module` (0-based; report eq. 21-23) on states and the following tokens; its cache is layer num_hidden_layers + module."""
        layer = self.config.num_hidden_layers + module
        prefix = f"model.layers.{layer}."
        embedded = self._tensors["model.embed_tokens.weight"].index_select(0, ids).float()
        merged = torch.cat([self.norm(embedded, prefix + "enorm.weight"), self.norm(hidden.contiguous(), prefix + "hnorm.weight")], dim=1)
        x = self.linear(merged, prefix + "eh_proj.weight")
        self._run(layer, layer + 1, x, positions, tables, storage)
        return self.norm(x, prefix + "shared_head.norm.weight")

    def logits(self, hidden: Float[Tensor, "n m"]) -> Float[Tensor, "n v"]:
        """The output head."""
        return self.linear(hidden.contiguous(), "lm_head.weight" if "lm_head.weight" in self._panels else "model.embed_tokens.weight")

    def norm(self, x: Float[Tensor, "n m"], name: str) -> Float[Tensor, "n m"]:
        """RMSNorm of every row with the weight of that name."""
        out = torch.empty(x.shape)
        native._call("rq_norm_rows", x, self._tensors[name], out, *x.shape, float(self.config.rms_norm_eps))
        return out

    def linear(self, x: Float[Tensor, "n i"], name: str) -> Float[Tensor, "n o"]:
        """x W^T with the weight of that name, each row by itself."""
        out = torch.empty(len(x), self._panels[name].outputs)
        matrix = self._matrix(name)
        native._call("rq_linear", x, ctypes.c_void_p(ctypes.addressof(matrix)), out, *x.shape, out.shape[1])
        return out

    def _run(
        self, first: int, last: int, x: Tensor, positions: Tensor, tables: Tensor, storage: Tensor, routes: Tensor | None = None
    ) -> None:
        n, longest = len(x), int(positions.max()) + 1
        tables, positions = tables.to(torch.int64).contiguous(), positions.to(torch.int64).contiguous()
        cos, sin = self._cos.index_select(0, positions), self._sin.index_select(0, positions)
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
