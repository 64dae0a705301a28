"""Every tensor of a checkpoint in the official layout, from the configuration alone: name, shape, dtype, bytes.

Spec of the released files: one tensor per expert, the MTP module under `model.layers.{num_hidden_layers}` with copies of embedding and
head, FP8 weights with a `weight_scale_inv` beside each. 671B in FP8: 91,991 tensors, 684,531,386,000 elements, 688,574,839,360 bytes
without file headers. Trap avoided: scale shapes are rounded up (kv_a_proj_with_mqa has 576 rows, so 5 row blocks).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from rorqual.config import ModelConfig
from rorqual.errors import ConfigError
from rorqual.planner.params import has_router_bias
from rorqual.presets import FP8_QUANTIZATION as FP8_QUANTIZATION

_MAX_EXPERTS = 1_000_000  # of all blocks together; the largest member has 23,040, and a hostile config.json must not fill the memory
_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1}


class Tensor(NamedTuple):
    """One tensor of the files; `dtype` as safetensors spells it."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in the file, header entry not counted."""
        return self.elements * _BYTES[self.dtype]


def totals(tensors: Iterable[Tensor]) -> tuple[int, int]:
    """(values, bytes) of all together; a model of a thousand experts has a hundred thousand tensors of a few shapes."""
    kinds = Counter((shape, dtype) for _, shape, dtype in tensors)
    counted = [(Tensor("", *kind), number) for kind, number in kinds.items()]
    return sum(one.elements * number for one, number in counted), sum(one.bytes * number for one, number in counted)


def inventory(config: ModelConfig, dtype: str = "BF16") -> list[Tensor]:
    """All tensors in the order embedding, blocks, final norm, head.

    `config.quantization_config` decides the layout: with FP8 blocks the Linear weights are F8_E4M3 with F32 scales, without it every weight
    has `dtype` ("BF16" or "F32"). Router biases are F32 always. Raises ConfigError for another quantisation, or an unsettled `q_lora_rank`.
    """
    if dtype not in _BYTES or dtype == "F8_E4M3":
        raise ConfigError(f"dtype ({dtype!r}) is not known; use 'BF16', 'F16' or 'F32', and quantization_config for FP8")
    if config.num_blocks * config.n_routed_experts > _MAX_EXPERTS:
        raise ConfigError(
            f"num_hidden_layers ({config.num_hidden_layers}) and n_routed_experts ({config.n_routed_experts}) make more than {_MAX_EXPERTS} experts; check the configuration"
        )
    return list(_Layout(config.settled(), dtype, fp8_block_size(config)).tensors())


def fp8_block_size(config: ModelConfig) -> tuple[int, int] | None:
    """Rows and columns of a scale block, or None for unquantised weights; ConfigError for anything but block-scaled E4M3."""
    raw = config.quantization_config
    if raw is None:
        return None
    method, fmt = raw.get("quant_method"), raw.get("fmt", "e4m3")
    if method != "fp8" or fmt != "e4m3":
        raise ConfigError(
            f"quantization_config has quant_method {method!r} and fmt {fmt!r}; only 'fp8' in 'e4m3' is of this family's layout"
        )
    block = raw.get("weight_block_size")
    if not (isinstance(block, (list, tuple)) and len(block) == 2 and all(type(side) is int and side > 0 for side in block)):
        raise ConfigError(f"quantization_config.weight_block_size ({block!r}) must be two whole numbers above 0, e.g. [128, 128]")
    return block[0], block[1]


@dataclass(frozen=True)
class _Layout:
    config: ModelConfig
    dtype: str
    block: tuple[int, int] | None

    def tensors(self) -> Iterator[Tensor]:
        """Everything, lazily."""
        config = self.config
        yield self._plain("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        for layer in range(config.num_blocks):
            yield from self._block(layer)
        yield self._plain("model.norm.weight", config.hidden_size)
        if not config.tie_word_embeddings:
            yield self._plain("lm_head.weight", config.vocab_size, config.hidden_size)

    def _block(self, layer: int) -> Iterator[Tensor]:
        config, prefix, d = self.config, f"model.layers.{layer}", self.config.hidden_size
        if config.is_mtp(layer):
            yield self._plain(f"{prefix}.embed_tokens.weight", config.vocab_size, d)
            yield self._plain(f"{prefix}.enorm.weight", d)
            yield self._plain(f"{prefix}.hnorm.weight", d)
            yield self._plain(f"{prefix}.eh_proj.weight", d, 2 * d)
        yield self._plain(f"{prefix}.input_layernorm.weight", d)
        yield from self._attention(f"{prefix}.self_attn")
        yield self._plain(f"{prefix}.post_attention_layernorm.weight", d)
        if config.is_moe(layer):
            yield from self._moe(f"{prefix}.mlp")
        else:
            yield from self._ffn(f"{prefix}.mlp", config.intermediate_size)
        if config.is_mtp(layer):
            yield self._plain(f"{prefix}.shared_head.norm.weight", d)
            yield self._plain(f"{prefix}.shared_head.head.weight", config.vocab_size, d)

    def _attention(self, prefix: str) -> Iterator[Tensor]:
        config, d, heads = self.config, self.config.hidden_size, self.config.num_attention_heads
        if config.q_lora_rank is None:
            yield from self._linear(f"{prefix}.q_proj", heads * config.qk_head_dim, d)
        else:
            yield from self._linear(f"{prefix}.q_a_proj", config.q_lora_rank, d)
            yield self._plain(f"{prefix}.q_a_layernorm.weight", config.q_lora_rank)
            yield from self._linear(f"{prefix}.q_b_proj", heads * config.qk_head_dim, config.q_lora_rank)
        yield from self._linear(f"{prefix}.kv_a_proj_with_mqa", config.kv_lora_rank + config.qk_rope_head_dim, d)
        yield self._plain(f"{prefix}.kv_a_layernorm.weight", config.kv_lora_rank)
        yield from self._linear(f"{prefix}.kv_b_proj", heads * (config.qk_nope_head_dim + config.v_head_dim), config.kv_lora_rank)
        yield from self._linear(f"{prefix}.o_proj", d, heads * config.v_head_dim)

    def _moe(self, prefix: str) -> Iterator[Tensor]:
        config = self.config
        yield self._plain(f"{prefix}.gate.weight", config.n_routed_experts, config.hidden_size)
        if has_router_bias(config):
            yield Tensor(f"{prefix}.gate.e_score_correction_bias", (config.n_routed_experts,), "F32")
        one = list(self._ffn("", config.moe_intermediate_size))  # all experts are alike but for the name
        for expert in range(config.n_routed_experts):
            for name, shape, dtype in one:
                yield Tensor(f"{prefix}.experts.{expert}{name}", shape, dtype)
        if config.n_shared_experts:
            yield from self._ffn(f"{prefix}.shared_experts", config.n_shared_experts * config.moe_intermediate_size)

    def _ffn(self, prefix: str, width: int) -> Iterator[Tensor]:
        yield from self._linear(f"{prefix}.gate_proj", width, self.config.hidden_size)
        yield from self._linear(f"{prefix}.up_proj", width, self.config.hidden_size)
        yield from self._linear(f"{prefix}.down_proj", self.config.hidden_size, width)

    def _linear(self, prefix: str, rows: int, columns: int) -> Iterator[Tensor]:
        """The weight of a Linear that FP8 quantises, with its scales where the layout has them."""
        if self.block is None:
            yield Tensor(f"{prefix}.weight", (rows, columns), self.dtype)
            return
        yield Tensor(f"{prefix}.weight", (rows, columns), "F8_E4M3")
        yield Tensor(f"{prefix}.weight_scale_inv", (-(-rows // self.block[0]), -(-columns // self.block[1])), "F32")

    def _plain(self, name: str, *shape: int) -> Tensor:
        return Tensor(name, shape, self.dtype)
