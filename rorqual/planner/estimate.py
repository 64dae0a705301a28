"""Memory that this package itself needs on one device, before it is allocated: training, post-training, serving. Bytes. No torch.

Unlike memory.py, which plans the report's system on a cluster, this follows rorqual.train tensor by tensor: what it holds for the whole
run (weights, masters, moments, average), what a micro-batch keeps for its backward, and what lives for a moment. The peak is the
largest over the moments of a step: the loss, each block's backward, the update, the validation. It is checked against measured peaks
of tensor bytes (tests/planner/test_estimate_measured.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from rorqual.config import ModelConfig
from rorqual.errors import ConfigError
from rorqual.planner.activations import MicroBatch, trainer_block, trainer_merge
from rorqual.planner.memory import weight_bytes
from rorqual.planner.params import count

MARGIN: Final = 0.05
"""Share of the tensors set aside for the allocator's gaps; an assumption, not a measurement."""
PROGRAM: Final = 400e6
"""Interpreter, torch and its libraries, loaded; measured on Linux, rounded up."""
LOGITS_AT_A_TIME: Final = 1 << 21
"""Elements of logits that the compiled loss holds at a time (kernels/native.py)."""
SAMPLED_BYTES: Final = 60
"""Bytes per logit that the sampler holds at a time: three FP32 and six 64-bit copies (inference/sampler.py)."""
LORA_TARGETS: Final = ("attention", "ffn")
"""What adapters sit on by default: MLA's projections, dense and shared FFNs; "experts" may be added."""


@dataclass(frozen=True)
class Estimate:
    """Bytes by part at the peak. `what` says what for, in words that complete "memory for ..."."""

    what: str
    parts: dict[str, float]

    @property
    def tensors(self) -> float:
        """All tensors at the peak: what a measurement of live tensors sees."""
        return sum(self.parts.values())

    @property
    def total(self) -> float:
        """What the process needs: tensors, a margin for gaps, and the program itself."""
        return self.tensors * (1 + MARGIN) + PROGRAM

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"what": self.what, "parts": dict(self.parts), "tensors": self.tensors, "total": self.total}


@dataclass(frozen=True)
class _Block:
    """One block as the backward pass meets it: what it keeps, what its backward holds for a moment, its trainable parameters."""

    kept: float
    backward: float
    parameters: float


def training_estimate(
    config: ModelConfig, *, micro_batch: int, length: int, batch: int | None = None, dtype: str = "fp32", compiled: bool = True, moments: str = "fp32",
    recompute: tuple[str, ...] = (), ema: bool = False, mtp: bool = True, validation: bool = True,
    foreach: bool = False, lora_rank: int | None = None, lora_targets: tuple[str, ...] = LORA_TARGETS, base: str | None = None, frozen_copies: int = 0,
    cache_bytes: float = 0.0, what: str = "training",
) -> Estimate:  # fmt: skip
    """Peak of one optimiser step on one device.

    micro_batch: sequences of `length` tokens in a forward and backward; batch: sequences of a step (default: one micro-batch).
    dtype: "fp32", or "bf16" with FP32 masters and gradient sums; compiled: the CPU kernels run (FP32 only).
    foreach: the update runs over all tensors at once, as on an accelerator, with copies of gradients, denominators and BF16 moments.
    lora_rank: only adapters train, over base weights kept as `base` ("fp32", "bf16", "fp8"; default: dtype). frozen_copies: further
    whole models, such as GRPO's reference; cache_bytes: latent cache of an engine beside it. validation: full logits of a micro-batch.
    """
    for name, value, known in (
        ("dtype", dtype, ("fp32", "bf16")),
        ("moments", moments, ("fp32", "bf16")),
        ("base", base or dtype, ("fp32", "bf16", "fp8")),
    ):
        if value not in known:
            raise ConfigError(f"{name} ({value!r}) must be one of {', '.join(known)}")
    if min(micro_batch, length) < 1:
        raise ConfigError(f"micro_batch ({micro_batch}) and length ({length}) must be at least 1")
    shape = MicroBatch(micro_batch, length, dtype == "fp32" and compiled, tuple(recompute))
    depth = config.num_nextn_predict_layers if mtp else 0
    parameters = count(config)
    whole = parameters.total + parameters.mtp
    trained = float(whole) if lora_rank is None else lora_parameters(config, lora_rank, lora_targets)
    mixed = dtype == "bf16"
    weights = whole * (2.0 if mixed else 4.0) if lora_rank is None else base_bytes(config, base or dtype)
    held = {
        "weights": weights + (0.0 if lora_rank is None else trained * (2 if mixed else 4)),
        "master": 4.0 * trained if mixed else 0.0,
        "moments": trained * (8 if moments == "fp32" else 4),
        "average": 4.0 * trained if ema else 0.0,
        "frozen_copies": frozen_copies * base_bytes(config, base or dtype),
        "cache": float(cache_bytes),
    }
    scale = trained / whole
    blocks = list(_blocks(config, shape, depth))
    several = batch is not None and batch > micro_batch
    peak = _peak(config, shape, depth, blocks, scale, several, mixed, full_head=lora_rank is None)
    update = {"gradients": 4.0 * trained, "update": trained * (8.0 + (8 if moments == "bf16" else 0)) if foreach else 0.0}
    peak = max(peak, update, key=lambda one: sum(one.values()))
    if validation and sum(peak.values()) < (look := _validation(config, shape, depth)):
        peak = {"logits": look}
    parts = {**held, **peak}
    return Estimate(what, {name: size for name, size in parts.items() if size})


def _blocks(config: ModelConfig, shape: MicroBatch, depth: int) -> Iterator[_Block]:
    """The blocks in the order of the forward pass."""
    sizes = count(config)
    for layer in range(config.num_hidden_layers + depth):
        ahead = layer - config.num_hidden_layers + 1
        batch = shape.shorter(ahead) if ahead > 0 else shape
        block = trainer_block(config, layer, batch)
        merge = sum(trainer_merge(config, batch).values()) if ahead > 0 else 0.0
        own = sizes.attention + 2 * config.hidden_size
        own += (
            sizes.router + (config.n_routed_experts + config.n_shared_experts) * sizes.expert if config.is_moe(layer) else sizes.dense_ffn
        )
        own += 2 * config.hidden_size**2 + 3 * config.hidden_size if ahead > 0 else 0
        yield _Block(block.total + merge, block.backward, own)


def _peak(
    config: ModelConfig, shape: MicroBatch, depth: int, blocks: list[_Block], scale: float, several: bool, mixed: bool, full_head: bool
) -> dict[str, float]:
    """Gradients, activations and logits at the moment of the step when their sum is largest.

    In the first micro-batch gradients appear as activations go; in a later one the sums are there from the start, and a block's new
    gradients exist beside them for a moment.
    """
    sizes, n = count(config), shape.tokens
    heads = 1 + depth
    matrix = 4.0 * sizes.embedding  # the head's gradient in FP32
    everything = scale * (sizes.total + sizes.mtp if depth else sizes.total) * 4.0
    last = 4.0 * n * config.hidden_size * (heads + 1)  # gradient of every head's input, and the final norm's input
    if shape.fp32:
        logits = 4.0 * min(max(LOGITS_AT_A_TIME // config.vocab_size, 16), n) * config.vocab_size
        kept_by_heads, at_loss = heads * matrix + last, logits
    else:
        kept_by_heads, at_loss = 4.0 * n * config.vocab_size * heads + last, 4.0 * n * config.vocab_size
    kept = sum(block.kept for block in blocks)
    sums = everything if several else 0.0
    moments = [{"gradients": sums, "activations": kept, "logits": kept_by_heads + at_loss}]
    present = matrix if full_head else 0.0
    for block in reversed(blocks):
        fresh = scale * block.parameters * (2.0 if mixed else 4.0)
        grads = sums + fresh if several else present + fresh
        moments.append({"gradients": grads, "activations": kept + block.backward, "logits": 0.0})
        kept -= block.kept
        present += fresh
    moments.append({"gradients": everything * (1.5 if mixed and not several else 1.0), "activations": 0.0, "logits": 0.0})
    return max(moments, key=lambda one: sum(one.values()))


def _validation(config: ModelConfig, shape: MicroBatch, depth: int) -> float:
    """Logits of the main model and one MTP module over a micro-batch, in FP32, and their log-probabilities."""
    return 4.0 * shape.tokens * config.vocab_size * (2 + (1 if depth else 0))


def lora_parameters(config: ModelConfig, rank: int, targets: tuple[str, ...] = LORA_TARGETS) -> float:
    """rank x (in + out) of every adapted matrix: "attention" (all of MLA's), "ffn" (dense and shared), "experts" (each routed one)."""
    if rank < 1:
        raise ConfigError(f"LoRA rank ({rank}) must be at least 1")
    return float(rank * sum(number * (inner + outer) for inner, outer, number in _adapted(config, targets)))


def adapted_parameters(config: ModelConfig, targets: tuple[str, ...] = LORA_TARGETS) -> float:
    """in x out of every adapted matrix: what a merged copy holds beside the base."""
    return float(sum(number * inner * outer for inner, outer, number in _adapted(config, targets)))


def _adapted(config: ModelConfig, targets: tuple[str, ...]) -> Iterator[tuple[int, int, int]]:
    """(in, out, how many) of the matrices that have adapters."""
    for target in targets:
        if target not in ("attention", "ffn", "experts"):
            raise ConfigError(f"LoRA target {target!r} is not known; there are attention, ffn, experts")
    config = config.settled()
    d, heads = config.hidden_size, config.num_attention_heads
    queries = heads * config.qk_head_dim
    latent = config.kv_lora_rank
    attention = [(d, queries)] if config.q_lora_rank is None else [(d, config.q_lora_rank), (config.q_lora_rank, queries)]
    attention += [
        (d, latent + config.qk_rope_head_dim),
        (latent, heads * (config.qk_nope_head_dim + config.v_head_dim)),
        (heads * config.v_head_dim, d),
    ]
    for layer in range(config.num_blocks):
        if "attention" in targets:
            yield from ((inner, outer, 1) for inner, outer in attention)
        width = config.n_shared_experts * config.moe_intermediate_size if config.is_moe(layer) else config.intermediate_size
        if "ffn" in targets and width:
            yield d, width, 3
        if config.is_moe(layer) and "experts" in targets:
            yield d, config.moe_intermediate_size, 3 * config.n_routed_experts


def base_bytes(config: ModelConfig, kept: str) -> float:
    """All weights, MTP modules included, as "fp32", "bf16" or "fp8"."""
    parameters = count(config)
    if kept == "fp8":
        return weight_bytes(config, fp8=True) + parameters.mtp * (1 + 4 / 16384)
    return (parameters.total + parameters.mtp) * (4.0 if kept == "fp32" else 2.0)


# ---------------------------------------------------------------------- serving


def serving_estimate(
    config: ModelConfig, *, weights: str = "fp32", cache_bytes: float | None = None, sequences: int = 64, context: int | None = None,
    batched_tokens: int = 512, drafts: int | None = None, panels: bool = True,
) -> Estimate:  # fmt: skip
    """Peak of the engine: weights as kept, the compiled step's copy of them, the cache, and one step of `batched_tokens` prompt tokens over contexts of `context` tokens.

    context: default the longest of the model. cache_bytes: what the cache is given (default: `sequences` contexts, at most 512 MiB, as
    the engine does). drafts: MTP modules that draft (default: one where there are any); their entries are in the cache too. A step
    makes the keys and values of the sequences in it anew, at most as many as the cache holds. panels: whether the compiled step runs, which
    reads copies of the weights.
    """
    if weights not in ("fp32", "bf16", "fp8"):
        raise ConfigError(f"weights ({weights!r}) must be fp32, bf16 or fp8")
    context = config.max_position_embeddings if context is None else context
    item = 2 if weights == "bf16" else 4
    drafts = min(1, config.num_nextn_predict_layers) if drafts is None else drafts
    layers = config.num_hidden_layers + min(drafts, config.num_nextn_predict_layers)
    latent = config.kv_lora_rank + config.qk_rope_head_dim
    if cache_bytes is None:
        cache_bytes = min(sequences * -(-context // 16) * 16 * layers * latent * item, 512 * 2**20)
    heads, key, value, nope = config.num_attention_heads, config.qk_head_dim, config.v_head_dim, config.qk_nope_head_dim
    keys = min(min(sequences, batched_tokens) * context, cache_bytes / (layers * latent * item))
    rows = min(batched_tokens, sequences * context)
    attention = item * keys * (latent + heads * (nope + value + key + max(key, value))) + rows * min(context, keys) * (item + 1.0)
    width = max(config.intermediate_size, config.num_experts_per_tok * config.moe_intermediate_size)
    ffn = item * rows * (3 * width + (config.num_experts_per_tok + 2) * config.hidden_size)
    widest = max(config.hidden_size * config.intermediate_size, config.kv_lora_rank * heads * (nope + value))
    parts = {
        "weights": base_bytes(config, weights),
        "panels": 0.0 if weights == "fp8" or not panels else base_bytes(config, weights) - item * config.vocab_size * config.hidden_size,
        "cache": float(cache_bytes),
        "dequantised": 4.0 * widest if weights == "fp8" else 0.0,
        "activations": max(attention, ffn),
        "logits": 0.0,
    }
    sampling = float(SAMPLED_BYTES * sequences * (1 + drafts) * config.vocab_size)
    if sampling > parts["activations"]:  # of two moments of a step, the one that takes more
        parts |= {"logits": sampling, "activations": 0.0}
    return Estimate("serving", {name: size for name, size in parts.items() if size})
