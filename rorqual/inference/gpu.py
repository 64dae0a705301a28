"""The decode step on a GPU: BF16 or FP32 weights, latent attention and products in Triton, recorded in CUDA graphs (report 2.1.1, 2.1.2, 3.4).

    step = GpuStep(config, dict(model.state_dict()), inv_freq, amplitude, softmax_scale, storage)
    hidden = step.trunk(ids, positions, tables, storage.values)   # as kernels.decode.DecodeStep, whose place it takes

Every operation that adds numbers up goes through `ops.row_kernels`, whose rows do not depend on each other; the rest works element by element.
So batching, padding and drafts change no bit of an answer, and prompts are read by this step too, 64 rows at a time, since a library's GEMM of a
chunk would round otherwise. States are in the weights' type, as in the model's own modules; router and logits are FP32.

Verified without a device: this step over the plain kernels, and over the Triton kernels in Triton's interpreter, equals the model; over tensors
without values nothing waits for the device (tests/inference/test_gpu.py); padding and buckets with a recorder that replays the function
(tests/inference/test_graphs.py); the kernels compile for capability 8.0 and 9.0. Not verified: running and recording on a device, speed. So the
step tests itself when it is opened, and the model's modules run where it fails. Tests marked `gpu` compare with the CPU where there is one.
Shape letters as in kernels.decode.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rorqual.config import ModelConfig
from rorqual.errors import ConfigError, DeviceError
from rorqual.inference.graphs import BUCKETS, Graphs, Recorder, StaticRows, cuda_recorder
from rorqual.inference.paged import PagedStorage
from rorqual.kernels import ops, rows
from rorqual.model.router import choose


def usable(config: ModelConfig, tensors: Mapping[str, Tensor]) -> str | None:
    """None where this step takes the model, else the reason."""
    for name, value in tensors.items():
        if value.device.type != "cuda" or value.dtype not in (torch.float32, torch.bfloat16):
            return f"{name} is {value.dtype} on {value.device}; the GPU's step takes FP32 or BF16 on a CUDA device"
    if "model.embed_tokens.weight" not in tensors or any("codes" in name or ".lora_" in name for name in tensors):
        return "the weights are not stored as plain FP32 or BF16 matrices"
    if not config.kv_lora_rank:
        return "the model has no latent attention"
    return ops.row_kernels("cuda")[1]


def opened(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    inv_freq: Sequence[float],
    amplitude: float,
    softmax_scale: float,
    storage: PagedStorage,
) -> tuple[GpuStep | None, str]:
    """(the step, what runs) where it takes the model and passes its own test on this device, else (None, why not)."""
    reason = usable(config, tensors)
    if reason is not None or storage.scratch is None:
        return None, reason or "the cache has no scratch block"
    step = GpuStep(config, tensors, inv_freq, amplitude, softmax_scale, storage)
    failed = step.self_test()
    return (step, "Triton, recorded in CUDA graphs") if failed is None else (None, f"the GPU's step fails its test: {failed}")


def device_for(device: str, weights: str | None = None) -> str:
    """Where an engine's model lies: `device` ("cpu", "cuda", "cuda:1"), for "auto" a GPU where there is one and the type of the weights has a step there.

    ConfigError for a name that is not known or weights that a GPU's step does not take, DeviceError where there is no such device.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ConfigError(f"device ({device!r}) is not known; use 'auto', 'cpu', 'cuda' or 'cuda:0'")
    plain = weights in (None, "fp32", "bf16")
    if device == "auto":
        return "cuda" if plain and torch.cuda.is_available() else "cpu"
    if device != "cpu" and not plain:
        raise ConfigError(f"weights ({weights!r}) are for the CPU; on a GPU use 'bf16' or 'fp32'")
    if device != "cpu" and not torch.cuda.is_available():
        raise DeviceError(f"device ({device!r}) is asked for and torch sees no CUDA device; use 'cpu' or 'auto'")
    return device


@dataclass(frozen=True)
class _Block:
    """Views of one block's weights; None where the block has none."""

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
    gate_up: Tensor | None
    down: Tensor | None
    ffn: tuple[Tensor, Tensor, Tensor] | None


@dataclass(frozen=True)
class _Places:
    """Where the rows of one call stand: rotary tables [1 n p], slots to write, and what attention reads."""

    cos: Tensor
    sin: Tensor
    slots: Tensor
    tables: Tensor
    positions: Tensor


class GpuStep:
    """Holds views of a model's weights, which must stay where they are while it lives; a change of their values is followed.

    storage: the cache that recordings read and write; its `scratch` block takes what padding writes. kernels and record are given by tests;
    by default what `ops.row_kernels` chooses and CUDA graphs, None records nothing.
    """

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, Tensor], inv_freq: Sequence[float], amplitude: float, softmax_scale: float,
        storage: PagedStorage, kernels: ModuleType | None = None, record: Recorder | None | str = "cuda",
    ) -> None:  # fmt: skip
        self.config, self._tensors, self._amplitude, self._scale = config, dict(tensors), amplitude, softmax_scale
        embedding = self._tensors["model.embed_tokens.weight"]
        self._inv_freq = torch.tensor(inv_freq, dtype=torch.float32, device=embedding.device)
        self._kernels = kernels or ops.row_kernels(embedding.device.type)[0]
        self._blocks = [self._block(layer) for layer in range(config.num_blocks)]
        self._recorded = storage.values
        self._graphs: Graphs | None = None
        if storage.scratch is not None and record is not None:
            width = -(-config.max_position_embeddings // storage.block_size)
            self._static = StaticRows(width, storage.scratch, embedding.device, config.hidden_size, embedding.dtype)
            self._graphs = Graphs(cuda_recorder() if isinstance(record, str) else record)

    def _block(self, layer: int) -> _Block:
        prefix, c = f"model.layers.{layer}.", self.config
        stem = "mlp.shared_experts." if c.is_moe(layer) else "mlp."

        def found(name: str) -> Tensor | None:
            return self._tensors.get(f"{prefix}{name}.weight")

        def need(name: str) -> Tensor:
            return self._tensors[f"{prefix}{name}.weight"]

        heads = need("self_attn.kv_b_proj").view(c.num_attention_heads, -1, c.kv_lora_rank)
        w_uk, w_uv = heads.split([c.qk_nope_head_dim, c.v_head_dim], dim=1)
        return _Block(
            need("input_layernorm"), found("self_attn.q_a_proj"), found("self_attn.q_a_layernorm"),
            need("self_attn.q_proj" if c.q_lora_rank is None else "self_attn.q_b_proj"), need("self_attn.kv_a_proj_with_mqa"),
            need("self_attn.kv_a_layernorm"), w_uk.transpose(1, 2), w_uv, need("self_attn.o_proj"), need("post_attention_layernorm"),
            found("mlp.gate"), self._tensors.get(f"{prefix}mlp.gate.e_score_correction_bias"), found("mlp.experts.gate_up_proj"),
            found("mlp.experts.down_proj"),
            None if found(stem + "up_proj") is None else (need(stem + "gate_proj"), need(stem + "up_proj"), need(stem + "down_proj")),
        )  # fmt: skip

    # ------------------------------------------------------------------ calls of the runner

    @torch.no_grad()
    def trunk(
        self, ids: Int[Tensor, " n"], positions: Int[Tensor, " n"], tables: Int[Tensor, "n t"], storage: Float[Tensor, "l k s c"],
        routes: Int[Tensor, "e n j"] | None = None,
    ) -> Float[Tensor, "n m"]:  # fmt: skip
        """See kernels.decode.DecodeStep.trunk; any number of rows, in calls of at most 64."""
        made = []
        for at in range(0, len(ids), BUCKETS[-1]):
            some = slice(at, at + BUCKETS[-1])
            hidden, chosen = self._call(None, None, ids[some], positions[some], tables[some], storage)
            made.append(hidden)
            if routes is not None:
                routes[:, some] = chosen
        return torch.cat(made)

    @torch.no_grad()
    def mtp(
        self, module: int, hidden: Float[Tensor, "n m"], ids: Int[Tensor, " n"], positions: Int[Tensor, " n"], tables: Int[Tensor, "n t"],
        storage: Float[Tensor, "l k s c"],
    ) -> Float[Tensor, "n m"]:  # fmt: skip
        """See kernels.decode.DecodeStep.mtp; any number of rows, in calls of at most 64."""
        parts = [slice(at, at + BUCKETS[-1]) for at in range(0, len(ids), BUCKETS[-1])]
        return torch.cat([self._call(module, hidden[some], ids[some], positions[some], tables[some], storage)[0] for some in parts])

    @torch.no_grad()
    def logits(self, hidden: Float[Tensor, "n m"]) -> Float[Tensor, "n v"]:
        """The output head, in FP32."""
        head = self._tensors.get("lm_head.weight")
        weight = self._tensors["model.embed_tokens.weight"] if head is None else head
        return self._kernels.linear(hidden, weight, torch.float32)

    def _call(
        self, module: int | None, hidden: Tensor | None, ids: Tensor, positions: Tensor, tables: Tensor, storage: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(states, experts that were chosen) of at most 64 rows: replayed where a recording fits, else run."""
        n = len(ids)
        recorded = self._graphs is not None and storage is self._recorded and self._static.takes(n, tables.shape[1])
        if not recorded:
            return self._body(module, hidden, ids, positions, tables, storage)
        assert self._graphs is not None
        held, bucket = self._static, self._static.bucket(n)
        states = None if hidden is None else held.hidden[:bucket]
        body = functools.partial(self._body, module, states, held.ids[:bucket], held.positions[:bucket], held.tables[:bucket], storage)
        self._graphs.prepare(module, bucket, held, body)
        held.fill(bucket, ids, positions, tables, hidden)
        states, chosen = self._graphs.replay(module, bucket)
        return states[:n].clone(), chosen[:, :n].clone()

    @torch.no_grad()
    def self_test(self) -> str | None:
        """None where this device does what the plain kernels say, else what is wrong: attention and experts of one token, and a recording's bits.

        Writes to the scratch block alone. Whatever the device's compiler or driver raises is a reason, not an end: the model's modules run too.
        """
        try:
            device, storage = self._inv_freq.device, self._recorded
            ids, table = torch.zeros(1, dtype=torch.int64, device=device), torch.full((1, 1), storage.shape[1] - 1, device=device)
            plain = copy.copy(self)
            plain._kernels = rows
            u = plain._norm(self._tensors["model.embed_tokens.weight"].index_select(0, ids), self._blocks[0].input_norm)
            places, zero = self._places(ids, table, storage.shape[2]), torch.zeros_like(u)
            pairs = [(step._attention(self._blocks[0], u, places, storage[0]) for step in (self, plain))]
            moe = next((block for block in self._blocks if block.gate is not None), None)
            if moe is not None:
                pairs.append(step._experts(moe, u, zero)[0] for step in (self, plain))
            for name, (got, want) in zip(("attention", "experts"), pairs, strict=False):
                error = float((got.float() - want.float()).norm() / want.float().norm().clamp_min(1e-20))
                if not error <= (1e-4 if u.dtype == torch.float32 else 3e-2):
                    return f"{name} of one token differ by {error:.2g} from plain PyTorch"
            alone, two = self._body(None, None, ids, ids, table, storage)[0], ids.expand(2).contiguous()
            for among in (
                self._call(None, None, ids, ids, table, storage)[0],
                self._call(None, None, two, two, table.expand(2, 1), storage)[0],
            ):
                if not torch.equal(among[:1], alone):
                    return "a recording has other bits than the step"
        except Exception as error:
            return f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
        return None

    # ------------------------------------------------------------------ the step; nothing below waits for the device

    def _body(
        self, module: int | None, hidden: Tensor | None, ids: Tensor, positions: Tensor, tables: Tensor, storage: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The trunk, or MTP module `module` on states: (states after the final norm, experts chosen [MoE layers, n, k])."""
        k, c = self._kernels, self.config
        places = self._places(positions, tables, storage.shape[2])
        x = self._tensors["model.embed_tokens.weight"].index_select(0, ids)
        if module is None or hidden is None:
            first, last, final = 0, c.num_hidden_layers, "model.norm"
        else:
            first = c.num_hidden_layers + module
            last, prefix = first + 1, f"model.layers.{first}"
            final = f"{prefix}.shared_head.norm"
            parts = [self._norm(x, self._tensors[f"{prefix}.enorm.weight"]), self._norm(hidden, self._tensors[f"{prefix}.hnorm.weight"])]
            x = k.linear(torch.cat(parts, dim=1), self._tensors[f"{prefix}.eh_proj.weight"])
        routes = []
        for layer in range(first, last):
            w = self._blocks[layer]
            x = x + self._attention(w, self._norm(x, w.input_norm), places, storage[layer])
            u = self._norm(x, w.post_norm)
            if w.gate is not None:
                x, chosen = self._experts(w, u, x)
                routes.append(chosen)
            if w.ffn is not None:
                gate, up, down = w.ffn
                x = x + k.linear(ops.swiglu(k.linear(u, gate), k.linear(u, up)), down)
        chosen = torch.stack(routes) if routes else ids.new_zeros(0, len(ids), c.num_experts_per_tok)
        return self._norm(x, self._tensors[f"{final}.weight"]), chosen

    def _places(self, positions: Tensor, tables: Tensor, size: int) -> _Places:
        slots = tables.gather(1, (positions // size).unsqueeze(1)).squeeze(1) * size + positions % size
        angle = positions.to(torch.float32).unsqueeze(1) * self._inv_freq
        cos, sin = angle.cos() * self._amplitude, angle.sin() * self._amplitude
        return _Places(cos.unsqueeze(0), sin.unsqueeze(0), slots, tables, positions)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._kernels.rms_norm(x, weight, self.config.rms_norm_eps)

    def _attention(self, w: _Block, u: Tensor, places: _Places, cache: Tensor) -> Tensor:
        """Equations 1-11 in absorbed form; the cache gets the rows' entries before it is read."""
        k, c, n = self._kernels, self.config, len(u)
        latent, entry = c.kv_lora_rank, c.kv_lora_rank + c.qk_rope_head_dim
        made = k.linear(u, w.kv_a)
        turned = self._rope(made[:, None, latent:], places)[:, 0]
        cache.view(-1, entry).index_copy_(0, places.slots, torch.cat([self._norm(made[:, :latent], w.kv_norm), turned], dim=1))
        if w.q_a is not None and w.q_norm is not None:
            u = self._norm(k.linear(u, w.q_a), w.q_norm)
        q = k.linear(u, w.q_b).view(n, c.num_attention_heads, -1)
        plain, rotated = q.split([c.qk_nope_head_dim, c.qk_rope_head_dim], dim=2)
        query = torch.cat([k.head_linear(plain, w.w_uk), self._rope(rotated, places)], dim=2)
        mixed = k.latent_attention(query, cache, places.tables, places.positions, self._scale, latent)
        return k.linear(k.head_linear(mixed, w.w_uv).flatten(1), w.o)

    @staticmethod
    def _rope(x: Float[Tensor, "n h r"], places: _Places) -> Float[Tensor, "n h r"]:
        return ops.rope(x.unsqueeze(0), places.cos, places.sin)[0]

    def _experts(self, w: _Block, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(x plus the routed experts' outputs, experts chosen [n k]): equations 12-16, sums over the chosen in their order."""
        k, c = self._kernels, self.config
        assert w.gate is not None and w.gate_up is not None and w.down is not None
        logits = k.linear(u, w.gate, torch.float32)
        scores = logits.sigmoid() if c.scoring_func == "sigmoid" else logits.softmax(dim=-1)
        chosen = choose(scores, w.bias, c)
        weights = scores.gather(1, chosen)
        if c.norm_topk_prob:
            weights = weights / (functools.reduce(torch.add, weights.split(1, dim=1)) + 1e-20)
        order = k.sort_by_expert(chosen, c.n_routed_experts)
        hidden = k.expert_linear(u, w.gate_up, order.source, order.ends)
        own = torch.arange(len(order.source), device=u.device)
        rows = k.expert_linear(ops.swiglu_packed(hidden), w.down, own, order.ends)
        return k.combine(x, rows, weights * c.routed_scaling_factor, order.slots), chosen
