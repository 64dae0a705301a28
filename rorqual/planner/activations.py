"""What one block keeps of a micro-batch for its backward pass, tensor by tensor, and what its backward holds for a moment. No torch.

Two accounts of the same block: `report_block` is the report's FP8 recipe (sections 3.2.3 and 3.3.3: FP8 inputs of Linears, E5M6 after
attention, dispatched tokens in FP8), `trainer_block` is what rorqual.train keeps, in FP32 with the compiled kernels or in BF16 with
plain PyTorch. A difference that costs memory: the trainer keeps the experts' outputs (the gradient of the gates needs them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rorqual.config import ModelConfig
from rorqual.errors import ConfigError
from rorqual.planner.communication import combine_bytes, dispatch_bytes

POLICIES: Final = ("norms", "mla_up", "swiglu")
"""What a recompute policy may name; the report uses all three."""


def check_policies(recompute: tuple[str, ...]) -> None:
    """ConfigError for a part of a recompute policy that is not known."""
    for name in recompute:
        if name not in POLICIES:
            raise ConfigError(f"recompute policy {name!r} is not known; there are {', '.join(POLICIES)}")


def report_block(config: ModelConfig, layer: int, recompute: tuple[str, ...] = POLICIES, fp8: bool = True) -> dict[str, float]:
    """Bytes per token of one block by tensor, in the report's recipe, or in BF16 without FP8.

    671B with everything recomputed: 155,104 bytes a token in a MoE block.
    """
    check_policies(recompute)
    d, heads = config.hidden_size, config.num_attention_heads
    cached = 1 if fp8 else 2  # bytes of a Linear's input kept for its weight gradient
    rank = config.q_lora_rank or 0
    parts: dict[str, float] = {
        "residual": 2 * 2 * d,  # into attention and into the FFN
        "latents": 2 * (rank + config.kv_lora_rank + config.qk_rope_head_dim),
        "attention_output": (1.5 if fp8 else 2) * heads * config.v_head_dim,  # E5M6 in the report
        "attention_statistics": 4 * heads,
    }
    if "norms" not in recompute:
        parts["normed"] = 2 * cached * d + cached * (rank + config.kv_lora_rank)
    if "mla_up" not in recompute:
        parts["queries_keys_values"] = 2 * heads * (2 * config.qk_head_dim + config.v_head_dim)
    if config.is_moe(layer):
        chosen, width = config.num_experts_per_tok, config.moe_intermediate_size
        shared = config.n_shared_experts * width
        parts["router"] = 4 * config.n_routed_experts + 12 * chosen
        parts["dispatched"] = chosen * (dispatch_bytes(config) if fp8 else combine_bytes(config))
        parts["gate_up"] = cached * 2 * (chosen * width + shared)
        inner = chosen * width + shared
    else:
        inner = config.intermediate_size
        parts["gate_up"] = cached * 2 * inner
    if "swiglu" not in recompute:
        parts["swiglu"] = cached * inner
    return parts


# ---------------------------------------------------------------------- rorqual.train


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of `sequences` sequences of `length` tokens. Packed samples (SFT) are reckoned as one to a row: shorter ones keep less."""

    sequences: int
    length: int
    fp32: bool = True
    """FP32 with the compiled kernels; else BF16 with plain PyTorch."""
    recompute: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of the micro-batch."""
        return self.sequences * self.length

    @property
    def itemsize(self) -> int:
        """Bytes of an activation's element."""
        return 4 if self.fp32 else 2

    def shorter(self, by: int) -> MicroBatch:
        """The same sequences without their last `by` tokens: what an MTP module sees."""
        return MicroBatch(self.sequences, self.length - by, self.fp32, self.recompute)


@dataclass(frozen=True)
class Kept:
    """Bytes that a block keeps, by tensor, and the most that its backward holds beside them (weight gradients not counted)."""

    parts: dict[str, float]
    backward: float

    @property
    def total(self) -> float:
        """Sum of what is kept."""
        return sum(self.parts.values())


def trainer_block(config: ModelConfig, layer: int, batch: MicroBatch) -> Kept:
    """What rorqual.train keeps of one block (model/*.py, kernels/native.py and reference.py say why)."""
    check_policies(batch.recompute)
    n, e, d = batch.tokens, batch.itemsize, config.hidden_size
    heads, rank = config.num_attention_heads, config.q_lora_rank or 0
    latent, rope, key, value = config.kv_lora_rank, config.qk_rope_head_dim, config.qk_head_dim, config.v_head_dim
    normed = 2 * d + rank + latent  # widths of the four norms
    parts: dict[str, float] = {"residual": 2 * d * e, "latents": (rank + latent + rope) * e, "attention_output": heads * value * e}
    parts["norm_statistics"] = 16 if batch.fp32 else 6 * normed + 16  # plain PyTorch keeps the FP32 copy and the normalised BF16 values
    if "norms" not in batch.recompute:
        parts["normed"] = normed * e
    if "mla_up" not in batch.recompute:
        parts["queries_keys_values"] = heads * (2 * key + value) * e
    parts = {name: n * size for name, size in parts.items()}
    if batch.fp32:
        parts["attention_statistics"] = 8.0 * n * heads  # a row's largest score and its sum of exponentials
    else:
        padded_v = key if value < key else 0  # V at the width of Q is a copy; the output is kept at that width too, beside its own
        parts["attention_padding"] = n * heads * ((padded_v + max(key, value)) * e + 4.0)
    transient = float(n * e * heads * 2 * (2 * key + value))  # gradients of q, k, v before and after their rotation
    inner = config.intermediate_size
    if config.is_moe(layer):
        chosen, width = config.num_experts_per_tok, config.moe_intermediate_size
        inner = config.n_shared_experts * width
        parts["router"] = n * (4.0 * config.n_routed_experts + 40 * chosen)
        parts["dispatched"] = float(n * chosen * d * e)
        parts["expert_gate_up"] = float(n * chosen * 2 * width * e)
        parts["expert_outputs"] = float(n * chosen * d * e)
        transient = max(transient, n * e * (chosen * (d + 3 * width) + 2 * d))
    parts["gate_up"] = float(n * 2 * inner * e * (1 if batch.fp32 else 1.5))
    if "swiglu" not in batch.recompute:
        parts["swiglu"] = float(n * inner * e)
    transient = max(transient, n * e * (4 * inner + 2 * d))
    return Kept(parts, transient)


def trainer_merge(config: ModelConfig, batch: MicroBatch) -> dict[str, float]:
    """What an MTP module keeps beside its block: the two normed inputs side by side, their sources, the input of its last norm."""
    n, e, d = batch.tokens, batch.itemsize, config.hidden_size
    sources = 2 * d * (e if batch.fp32 else 6)
    return {"merged": float(n * 2 * d * e), "merge_sources": float(n * sources), "last_norm": float(n * d * (e if batch.fp32 else 6))}
