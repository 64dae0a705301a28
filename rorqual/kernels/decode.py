"""The compiled decode step: from tokens to logits and the next tokens in one C++ call, for a few rows over a paged latent cache.

    step = DecodeStep(config, dict(model.state_dict()), inv_freq, amplitude, softmax_scale)
    made = step.forward(Rows.of(ids, positions, tables), storage, Draws(range(n), keys, temperatures, vocab))   # states, logits, tokens
    hidden = step.trunk(ids, positions, tables, storage)          # [n m], after the final norm; the cache gets the rows' entries
    logits = step.logits(hidden)

Report sections 2.1.1, 2.1.2, 2.2 and 3.4. Arithmetic is FP32. Matrices are read from panels of 16 outputs (kernels.panels), copies that are
made once and again by `refresh`, in FP32, BF16 (exact for BF16 weights), FP16 or INT8. A row's result does not depend on the other rows of
the call, to the bit (decode.cpp), so batching and drafts cannot change an answer. Shape letters: n rows, w rows whose states are wanted,
d rows drawn, m model width, v vocabulary, t blocks of a table, l layers, k blocks, s slots, c entry width, i inputs, o outputs.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rorqual.config import ModelConfig
from rorqual.kernels import native
from rorqual.kernels.memory import LargePages, available_bytes
from rorqual.kernels.panels import Panels, most_rounded

_LONGS = ("m", "h", "d", "r", "c", "v", "q_rank", "experts", "chosen", "groups", "kept_groups", "width", "shared", "dense", "vocab", "block_size", "num_blocks",
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
    _fields_ = [("data", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("shift", ctypes.c_void_p), ("kind", ctypes.c_long)]


class _Weights(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_void_p) for name in _POINTERS), *((name, _Matrix) for name in _MATRICES)]


class _Ends(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_void_p) for name in ("norm", "enorm", "hnorm")), ("eh_proj", _Matrix), ("head", _Matrix)]


class _Model(ctypes.Structure):
    _fields_ = [
        ("sizes", _Sizes), ("blocks", ctypes.c_void_p), ("ends", ctypes.c_void_p), ("embed", ctypes.c_void_p), ("embed_bf16", ctypes.c_long),
        ("cos", ctypes.c_void_p), ("sin", ctypes.c_void_p),
    ]  # fmt: skip


_COUNTS = ("n", "wanted", "drawn", "longest", "first", "last", "ends", "width")
_PLACES = ("ids", "positions", "starts", "tables", "select", "rows", "keys", "temperatures", "hidden", "sources", "out", "logits", "cache", "scratch", "tokens", "routes")  # fmt: skip


class _Call(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_long) for name in _COUNTS), *((name, ctypes.c_void_p) for name in _PLACES)]


@dataclass(slots=True)
class Rows:
    """Row i is token ids[i] at positions[i] of the sequence whose blocks begin at tables[starts[i]]; arrays of 64-bit integers."""

    ids: array[int]
    positions: array[int]
    starts: array[int]
    tables: array[int]

    @classmethod
    def of(cls, ids: Int[Tensor, " n"], positions: Int[Tensor, " n"], tables: Int[Tensor, "n t"]) -> Rows:
        """The same from tensors, a table for each row."""
        width = tables.shape[1]
        return cls(
            whole(ids.tolist()), whole(positions.tolist()), whole(range(0, len(tables) * width, width)), whole(tables.flatten().tolist())
        )

    @classmethod
    def none(cls) -> Rows:
        """No rows, to be added to."""
        return cls(array("q"), array("q"), array("q"), array("q"))

    def add(self, ids: list[int], first: int, blocks: list[int]) -> None:
        """Tokens of one sequence at positions from `first` on."""
        self.ids.extend(ids)
        self.positions.extend(range(first, first + len(ids)))
        self.starts.extend([len(self.tables)] * len(ids))
        self.tables.extend(blocks)


@dataclass(slots=True)
class Draws:
    """Rows (of those whose states are wanted) whose logits are made, and how a token is drawn from the first `width` of them.

    keys: of kernels.sampling; temperatures of 0 take the largest. Without keys no token is drawn.
    """

    rows: array[int]
    keys: array[int] | None = None
    temperatures: array[float] | None = None
    width: int = 0

    @classmethod
    def none(cls, width: int) -> Draws:
        """No rows, to be added to."""
        return cls(array("q"), array("q"), array("d"), width)


@dataclass(slots=True)
class Made:
    """States [w m] after the final norm, logits [d v] (until the next call), and the drawn tokens, -1 where the logits hold NaN."""

    states: Tensor
    logits: Tensor | None
    tokens: list[int] | None


def whole(values: Iterable[int]) -> array[int]:
    """An array of 64-bit integers."""
    return array("q", values)


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

    weights: type of the panels, "fp32", "bf16", "fp16" or "int8". drafts: the MTP modules' and their head's, by default the same; drafts that
    are wrong cost time and change no answer, so that a small type pays. See `usable` for what it takes.
    """

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, Tensor], inv_freq: Sequence[float], amplitude: float, softmax_scale: float, weights: str = "fp32",
        drafts: str | None = None,
    ) -> None:  # fmt: skip
        self.config, self._source, self._tensors = config, dict(tensors), dict(tensors)
        heads, layers, drafts = config.num_attention_heads, config.num_hidden_layers, drafts or weights
        for name in [name for name in tensors if name.endswith("kv_b_proj.weight")]:  # W^UK, turned, and W^UV of each head
            whole = self._source.pop(name).view(config.num_attention_heads, -1, config.kv_lora_rank)
            stem = name.removesuffix("kv_b_proj.weight")
            self._source[stem + "w_uk"] = whole[:, : config.qk_nope_head_dim].transpose(1, 2)
            self._source[stem + "w_uv"] = whole[:, config.qk_nope_head_dim :]
        for name in [name for name in tensors if name.endswith(("q_b_proj.weight", "self_attn.q_proj.weight"))]:
            self._source[name] = tensors[name].unflatten(0, (heads, -1))
        self._head = "lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"
        self._drafting = tuple(f"model.layers.{layer}." for layer in range(layers, config.num_blocks))
        stored = {
            n: value for n, value in self._source.items() if value.dim() > 1 and (n == self._head or n != "model.embed_tokens.weight")
        }
        most, memory = most_rounded(), LargePages()
        self._panels = {}
        for name, value in stored.items():
            draft = name.startswith(self._drafting or " ")
            exact = draft and name.endswith(("mlp.gate.weight", "w_uk", "w_uv"))  # small, and what the router or all heads go by
            kind = weights if not draft else "fp32" if exact and drafts != weights else drafts
            rounded = draft and drafts != weights and value.shape[-1] <= most
            self._panels[name] = Panels(value, kind, halves=name.endswith("gate_up_proj.weight"), rounded=rounded, memory=memory)
        self._draft_head = self._panels[self._head]
        if self._drafting and drafts != weights:
            self._draft_head = Panels(stored[self._head], drafts, rounded=config.hidden_size <= most, memory=memory)
        for name, value in tensors.items():  # what is read element by element is FP32
            if value.dim() == 1 and value.dtype != torch.float32:
                self._tensors[name] = value.float()
        angle = torch.arange(config.max_position_embeddings, dtype=torch.float32).unsqueeze(1) * torch.tensor(inv_freq, dtype=torch.float32)
        self._cos, self._sin = angle.cos() * amplitude, angle.sin() * amplitude
        grouped = config.n_routed_experts > 0 and config.topk_method != "greedy" and config.n_group > 1
        moe = config.n_routed_experts > 0
        sizes = _Sizes(
            m=config.hidden_size, h=config.num_attention_heads, d=config.qk_nope_head_dim, r=config.qk_rope_head_dim, c=config.kv_lora_rank,
            v=config.v_head_dim, q_rank=config.q_lora_rank or 0, experts=config.n_routed_experts, chosen=config.num_experts_per_tok if moe else 0,
            groups=config.n_group if moe else 0, kept_groups=config.topk_group if grouped else 0, width=config.moe_intermediate_size if moe else 0,
            shared=config.n_shared_experts * config.moe_intermediate_size if moe else 0, dense=config.intermediate_size, vocab=config.vocab_size, block_size=0, num_blocks=0,
            softmax=config.scoring_func == "softmax", normalise=config.norm_topk_prob, bias_sum=config.topk_method == "noaux_tc",
            eps=config.rms_norm_eps, scale=softmax_scale, route_scale=config.routed_scaling_factor,
        )  # fmt: skip
        self._blocks = (_Weights * config.num_blocks)(*(self._block(layer) for layer in range(config.num_blocks)))
        self._ends = (_Ends * (1 + len(self._drafting)))(
            self._end("model.norm", None), *(self._end("shared_head.norm", p) for p in self._drafting)
        )
        embed = self._tensors["model.embed_tokens.weight"]
        self._model = _Model(
            sizes, ctypes.addressof(self._blocks), ctypes.addressof(self._ends), embed.data_ptr(), embed.dtype == torch.bfloat16,
            self._cos.data_ptr(), self._sin.data_ptr(),
        )  # fmt: skip
        self._call, self._scratch, self._logits = _Call(), torch.empty(1), torch.empty(0, config.vocab_size)
        library = native.library().library
        assert library is not None
        self._run = library.rq_step
        self._run.argtypes, self._run.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long], ctypes.c_long
        self._advance, self._cache, self._trunk = library.rq_advance, (torch.empty(0), 0, 0, 0), layers
        self._advance.argtypes, self._advance.restype = [*[ctypes.c_void_p] * 8, ctypes.c_long], ctypes.c_long
        self._places = ctypes.addressof(self._model), ctypes.addressof(self._call)

    def _end(self, norm: str, prefix: str | None) -> _Ends:
        if prefix is None:
            return _Ends(norm=self._tensors[norm + ".weight"].data_ptr(), head=self._matrix(self._panels[self._head]))
        pointers = {name: self._tensors[f"{prefix}{name}.weight"].data_ptr() for name in ("enorm", "hnorm")}
        return _Ends(
            norm=self._tensors[f"{prefix}{norm}.weight"].data_ptr(), eh_proj=self._matrix(self._panels[prefix + "eh_proj.weight"]),
            head=self._matrix(self._draft_head), **pointers,
        )  # fmt: skip

    def _block(self, layer: int) -> _Weights:
        prefix = f"model.layers.{layer}."
        names = {key: prefix + name for key, name in _NAMES.items()}
        if self.config.q_lora_rank is None:
            names["q_b"] = prefix + "self_attn.q_proj.weight"
        stem = "mlp.shared_experts." if self.config.is_moe(layer) else "mlp."
        names |= {key: prefix + stem + name for key, name in _FFN.items()}
        found = {key: self._tensors[name] for key, name in names.items() if name in self._tensors}
        matrices = {key: self._matrix(self._panels[names[key]]) for key in _MATRICES if key in names and names[key] in self._panels}
        return _Weights(**{key: found[key].data_ptr() for key in _POINTERS if key in found}, **matrices)  # type: ignore[arg-type]

    @staticmethod
    def _matrix(panels: Panels) -> _Matrix:
        scale, shift = (None if values is None else values.data_ptr() for values in (panels.scale, panels.shift))
        return _Matrix(panels.values.data_ptr(), scale, shift, panels.kind)

    def refresh(self) -> None:
        """Takes the weights' present values into the panels."""
        for name, panels in self._panels.items():
            panels.fill(self._source[name])
        if self._draft_head is not self._panels[self._head]:
            self._draft_head.fill(self._source[self._head])
        for name, value in self._source.items():
            if value.dim() == 1 and value is not self._tensors[name]:
                self._tensors[name].copy_(value)

    @property
    def _targets(self) -> list[tuple[Panels, Tensor]]:
        return [(panels, self._source[name]) for name, panels in self._panels.items() if not name.startswith(self._drafting or " ")]

    @property
    def lossy(self) -> bool:
        """Whether the panels hold other values than the weights; the MTP modules' do not count, which change no answer."""
        return any(panels.lossy(weight) for panels, weight in self._targets)

    def weight_error(self) -> float:
        """Root of the sum of squared differences of the matrices from the weights over that of the weights' squares, without MTP modules."""
        squares = [float(weight.detach().float().square().sum()) for _, weight in self._targets]
        parts = [panels.relative_error(weight) ** 2 * square for (panels, weight), square in zip(self._targets, squares, strict=True)]
        return math.sqrt(sum(parts) / max(sum(squares), 1e-30))

    def trunk(
        self, ids: Int[Tensor, " n"], positions: Int[Tensor, " n"], tables: Int[Tensor, "n t"], storage: Float[Tensor, "l k s c"],
        routes: Int[Tensor, "e n j"] | None = None,
    ) -> Float[Tensor, "n m"]:  # fmt: skip
        """States after the final norm. Row i is token ids[i] at positions[i] of the sequence whose blocks are tables[i].

        `routes`, where it is given, is filled with the experts that each MoE layer chose.
        """
        return self.forward(Rows.of(ids, positions, tables), storage, routes=routes).states

    def mtp(
        self, module: int, hidden: Float[Tensor, "n m"], ids: Int[Tensor, " n"], positions: Int[Tensor, " n"], tables: Int[Tensor, "n t"],
        storage: Float[Tensor, "l k s c"],
    ) -> Float[Tensor, "n m"]:  # fmt: skip
        """MTP module `module` (0-based; report eq. 21-23) on states and the following tokens; its cache is layer num_hidden_layers + module."""
        return self.forward(Rows.of(ids, positions, tables), storage, module=module, hidden=hidden).states

    def logits(self, hidden: Float[Tensor, "n m"]) -> Float[Tensor, "n v"]:
        """The output head, each row by itself."""
        out, matrix = torch.empty(len(hidden), self.config.vocab_size), self._ends[0].head
        native._call("rq_linear", hidden.contiguous(), ctypes.c_void_p(ctypes.addressof(matrix)), out, *hidden.shape, out.shape[1])
        return out

    def forward(
        self, rows: Rows, storage: Float[Tensor, "l k s c"], draws: Draws | None = None, *, module: int | None = None,
        hidden: Float[Tensor, "n m"] | None = None, select: array[int] | None = None, routes: Int[Tensor, "e n j"] | None = None,
    ) -> Made:  # fmt: skip
        """The trunk, or MTP module `module` on `hidden` and the tokens that follow, and what `draws` asks for, in one call.

        `select`: rows whose states are wanted (default: all); the others leave their entries in the cache and cost a fraction.
        """
        call, n = self._call, len(rows.ids)
        wanted, drawn = n if select is None else len(select), 0 if draws is None else len(draws.rows)
        call.n, call.wanted, call.drawn, call.longest = n, wanted, drawn, max(rows.positions) + 1
        trunk = self.config.num_hidden_layers
        if module is None:
            call.first, call.last, call.ends, call.hidden = 0, trunk, 0, None
        else:
            assert hidden is not None
            hidden = hidden.contiguous()
            call.first, call.last, call.ends, call.hidden = trunk + module, trunk + module + 1, 1 + module, hidden.data_ptr()
        call.ids, call.positions, call.starts, call.tables = map(_place, (rows.ids, rows.positions, rows.starts, rows.tables))
        call.select = None if select is None else _place(select)
        states, logits, tokens = torch.empty(wanted, self.config.hidden_size), None, None
        call.out, call.cache, call.tokens = states.data_ptr(), storage.data_ptr(), None
        call.routes = None if routes is None else routes.data_ptr()
        if draws is not None:
            if self._logits.shape[0] != drawn:
                self._logits = torch.empty(drawn, self.config.vocab_size)
            logits = self._logits
            call.logits, call.rows = logits.data_ptr(), _place(draws.rows)
            if draws.keys is not None and draws.temperatures is not None:
                tokens = array("q", bytes(8 * drawn))
                call.width, call.tokens = draws.width, _place(tokens)
                call.keys, call.temperatures = _place(draws.keys), _place(draws.temperatures)
        sizes = self._model.sizes
        sizes.num_blocks, sizes.block_size = storage.shape[1], storage.shape[2]
        call.scratch = self._scratch.data_ptr()
        need = self._run(*self._places, self._scratch.numel())
        if need:
            self._scratch = torch.empty(2 ** math.ceil(math.log2(need)))
            call.scratch = self._scratch.data_ptr()
            self._run(*self._places, self._scratch.numel())
        return Made(states, logits, None if tokens is None else tokens.tolist())

    def advance(
        self, lines: list[int], tables: list[int], temperatures: list[float], longest: int, width: int, storage: Float[Tensor, "l k s c"],
        routes: Int[Tensor, "e n j"] | None = None, module: int = 0,
    ) -> tuple[list[int], Tensor]:  # fmt: skip
        """A step of decoding sequences and the drafts for their next one, in one call: (results, logits [n v] until the next call).

        lines: of each sequence eight numbers: the position of its newest token, its rows (1, or 2 with a draft), where its blocks begin in
        `tables`, the token, the draft (or anything), and the keys of the draws at the next three places. The trunk runs on all n rows; its
        tokens are kept up to the first that differs from the draft beside it; the MTP module runs on the rows of the kept ones.
        Results: tokens of all rows, then how many each sequence keeps, then every sequence's draft. longest: the largest position and one.
        """
        count, rows = len(temperatures), sum(lines[1::8])
        plan = array("q", [count, rows, longest, width, self._trunk, module, *lines, *tables])
        results, warmth = array("q", bytes(8 * (rows + 2 * count))), array("d", temperatures)
        if self._logits.shape[0] != rows:
            self._logits = torch.empty(rows, self.config.vocab_size)
        if self._cache[0] is not storage:
            self._cache = storage, storage.data_ptr(), storage.shape[1], storage.shape[2]
        sizes = self._model.sizes
        _, cache, sizes.num_blocks, sizes.block_size = self._cache
        places = (
            self._places[0],
            _place(plan),
            _place(warmth),
            cache,
            self._logits.data_ptr(),
            None if routes is None else routes.data_ptr(),
            _place(results),
        )
        need = self._advance(*places, self._scratch.data_ptr(), self._scratch.numel())
        if need:
            self._scratch = torch.empty(2 ** math.ceil(math.log2(need)))
            self._advance(*places, self._scratch.data_ptr(), self._scratch.numel())
        return results.tolist(), self._logits


def _place(values: array[int] | array[float]) -> int:
    return values.buffer_info()[0]
