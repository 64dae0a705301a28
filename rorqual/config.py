"""ModelConfig: the fields of a DeepSeek-V3-family `config.json`, under their Hugging Face names.

Report sections 2 and 4.2. One dataclass turns the file into shapes; nothing elsewhere assumes the 671B sizes.
`null`, `0` and "absent" are three different inputs: an absent `q_lora_rank` stays the sentinel `ABSENT` and is settled by
the tensors found (checkpoint/), never by a class default (field case F01).
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rorqual.errors import ConfigError

ABSENT = -1  # q_lora_rank of a config.json that does not name it: decided by the tensors, refused by the model

_METHODS = {"noaux_tc": "sigmoid", "group_limited_greedy": "softmax", "greedy": "softmax"}
_NO_SCALING = (None, "default")


@dataclass(frozen=True)
class RopeScaling:
    """YaRN scaling of the rotary frequencies (report section 4.3); lengths in tokens."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise ConfigError(
                f"rope_scaling.factor ({self.factor}) must be a finite number of at least 1; to shorten the context, drop rope_scaling"
            )
        if self.original_max_position_embeddings < 1:
            raise ConfigError(
                f"rope_scaling.original_max_position_embeddings ({self.original_max_position_embeddings}) must be at least 1: the length trained before the extension"
            )
        if not self.beta_fast >= self.beta_slow > 0:  # Kimi-K2 has 1 and 1
            raise ConfigError(f"rope_scaling needs beta_fast ({self.beta_fast}) >= beta_slow ({self.beta_slow}) > 0")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of one model of the family. Defaults are DeepSeek-V3's own where the report gives one value for all sizes."""

    vocab_size: int = 129280
    hidden_size: int = 7168
    num_hidden_layers: int = 61
    first_k_dense_replace: int = 3
    moe_layer_freq: int = 1
    intermediate_size: int = 18432
    moe_intermediate_size: int = 2048
    n_routed_experts: int = 256
    n_shared_experts: int = 1
    num_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    topk_method: str = "noaux_tc"
    scoring_func: str = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    num_attention_heads: int = 128
    q_lora_rank: int | None = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int = 4096
    tie_word_embeddings: bool = False
    initializer_range: float = 0.006
    num_nextn_predict_layers: int = 1
    bos_token_id: int = 0
    eos_token_id: int = 1
    pad_token_id: int | None = None
    model_type: str = "deepseek_v3"
    quantization_config: Mapping[str, Any] | None = field(default=None, compare=True)

    # ------------------------------------------------------------------ derived shapes

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head: the part without and the part with rotation."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def num_blocks(self) -> int:
        """Length of the one ordered list of blocks: the trunk, then the MTP modules."""
        return self.num_hidden_layers + self.num_nextn_predict_layers

    def is_mtp(self, layer: int) -> bool:
        """Whether block `layer` is an MTP module (stored as layers num_hidden_layers and up)."""
        return layer >= self.num_hidden_layers

    def is_moe(self, layer: int) -> bool:
        """Whether block `layer` has routed experts. MTP modules do whenever the model has experts at all."""
        if not self.n_routed_experts:
            return False
        return self.is_mtp(layer) or (layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Global numbers of the blocks with routed experts, MTP included, in order."""
        return tuple(i for i in range(self.num_blocks) if self.is_moe(i))

    # ------------------------------------------------------------------ validation

    def __post_init__(self) -> None:
        if self.quantization_config is not None:
            if not isinstance(self.quantization_config, Mapping):
                raise ConfigError(f"quantization_config ({self.quantization_config!r}) must be an object or null")
            object.__setattr__(self, "quantization_config", dict(self.quantization_config))
        for name in ("norm_topk_prob", "tie_word_embeddings"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} ({getattr(self, name)!r}) must be true or false")
        for name in ("rms_norm_eps", "rope_theta", "initializer_range", "routed_scaling_factor"):
            _number(name, getattr(self, name))
        positive = ("vocab_size", "hidden_size", "num_hidden_layers", "moe_layer_freq", "intermediate_size", "num_attention_heads",
                    "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "max_position_embeddings")  # fmt: skip
        for name in positive:
            _whole(name, getattr(self, name), 1)
        for name in ("first_k_dense_replace", "n_routed_experts", "n_shared_experts", "num_nextn_predict_layers"):
            _whole(name, getattr(self, name), 0)
        if self.n_routed_experts > 100_000:
            raise ConfigError(
                f"n_routed_experts ({self.n_routed_experts}) must be at most 100000; the largest member of the family has 384"
            )
        if self.num_hidden_layers > 10_000 or self.num_nextn_predict_layers > 1_000:
            raise ConfigError(
                f"num_hidden_layers ({self.num_hidden_layers}) must be at most 10000 and num_nextn_predict_layers ({self.num_nextn_predict_layers}) at most 1000"
            )
        if self.q_lora_rank is not None and self.q_lora_rank != ABSENT:
            if self.q_lora_rank == 0:
                object.__setattr__(self, "q_lora_rank", None)
            else:
                _whole("q_lora_rank", self.q_lora_rank, 1)
        if self.qk_rope_head_dim % 2:
            raise ConfigError(
                f"qk_rope_head_dim ({self.qk_rope_head_dim}) must be even: RoPE rotates pairs; use {self.qk_rope_head_dim + 1}"
            )
        if not self.rms_norm_eps > 0:
            raise ConfigError(f"rms_norm_eps ({self.rms_norm_eps}) must be positive, e.g. 1e-6")
        if not self.rope_theta > 1:
            raise ConfigError(f"rope_theta ({self.rope_theta}) must be above 1, e.g. 10000")
        if not self.initializer_range > 0:
            raise ConfigError(f"initializer_range ({self.initializer_range}) must be positive; the report uses 0.006")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 0 <= value < self.vocab_size):
                raise ConfigError(f"{name} ({value!r}) must be a token id between 0 and vocab_size - 1 ({self.vocab_size - 1})")
        if self.n_routed_experts:
            self._check_experts()

    def _check_experts(self) -> None:
        experts, groups, chosen = self.n_routed_experts, self.n_group, self.num_experts_per_tok
        _whole("moe_intermediate_size", self.moe_intermediate_size, 1)
        _whole("num_experts_per_tok", chosen, 1)
        if chosen > experts:
            raise ConfigError(f"num_experts_per_tok ({chosen}) must be at most n_routed_experts ({experts})")
        if self.topk_method not in _METHODS:
            raise ConfigError(f"topk_method ({self.topk_method!r}) is not known; use one of {', '.join(map(repr, _METHODS))}")
        if self.scoring_func not in ("sigmoid", "softmax"):
            raise ConfigError(f"scoring_func ({self.scoring_func!r}) is not known; use 'sigmoid' (V3) or 'softmax' (V2)")
        _whole("n_group", groups, 1)
        _whole("topk_group", self.topk_group, 1)
        if experts % groups:
            near = [n for n in (experts - experts % groups, experts - experts % groups + groups) if n]
            raise ConfigError(
                f"n_routed_experts ({experts}) must be divisible by n_group ({groups}); use {' or '.join(map(str, near))}, or set n_group=1"
            )
        if self.topk_group > groups:
            raise ConfigError(f"topk_group ({self.topk_group}) must be at most n_group ({groups})")
        reachable = self.topk_group * (experts // groups)
        if self.topk_method != "greedy" and reachable < chosen:
            raise ConfigError(
                f"topk_group ({self.topk_group}) groups of {experts // groups} experts leave {reachable} candidates, fewer than num_experts_per_tok ({chosen}); raise topk_group to {-(-chosen // (experts // groups))}"
            )
        if not self.routed_scaling_factor > 0:
            raise ConfigError(f"routed_scaling_factor ({self.routed_scaling_factor}) must be a positive number")

    def settled(self) -> ModelConfig:
        """Refuses a configuration whose query compression is still unknown; every builder of shapes calls this."""
        if self.q_lora_rank == ABSENT:
            raise ConfigError(
                "q_lora_rank is absent from the configuration and no tensors were given to settle it; write a rank, or null for a full q_proj"
            )
        return self

    # ------------------------------------------------------------------ config.json

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Reads the object of a `config.json`, in any spelling that the family uses (field cases F01-F04).

        Unknown keys are ignored, except inside the rope fields, where they raise a warning; a model type outside the
        family is a ConfigError.
        """
        model_type = raw.get("model_type", "deepseek_v3")
        if model_type not in ("deepseek_v3", "deepseek_v2", "kimi_k2"):
            raise ConfigError(f"model_type ({model_type!r}) is not of this family; supported: 'deepseek_v3', 'deepseek_v2', 'kimi_k2'")
        if raw.get("attention_bias"):
            raise ConfigError("attention_bias (true) is not supported: no Linear of this family has a bias")
        if raw.get("hidden_act", "silu") != "silu":
            raise ConfigError(f"hidden_act ({raw['hidden_act']!r}) must be 'silu'")
        values: dict[str, Any] = {"model_type": model_type, "quantization_config": raw.get("quantization_config")}
        renamed = {"num_mtp_layers": "num_nextn_predict_layers"}
        known = {f.name for f in fields(cls)} - {"rope_theta", "rope_scaling", "quantization_config", "model_type"}
        for key, value in raw.items():
            name = renamed.get(key, key)
            if name in known:
                values[name] = value
        required = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "kv_lora_rank", "qk_nope_head_dim",
                    "qk_rope_head_dim", "v_head_dim", "intermediate_size")  # fmt: skip
        missing = [name for name in required if values.get(name) is None]
        if missing:
            raise ConfigError(f"config.json lacks {', '.join(missing)}; a model of this family cannot be shaped without")
        values.setdefault("q_lora_rank", ABSENT)
        for name in ("n_routed_experts", "n_shared_experts", "num_nextn_predict_layers", "first_k_dense_replace"):
            values[name] = values.get(name) or 0
        if values["n_routed_experts"]:
            lacking = [name for name in ("moe_intermediate_size", "num_experts_per_tok") if values.get(name) is None]
            if lacking:
                raise ConfigError(f"config.json has n_routed_experts ({values['n_routed_experts']}) but lacks {', '.join(lacking)}")
        else:
            values = {
                name: value
                for name, value in values.items()
                if value is not None or name not in ("moe_intermediate_size", "num_experts_per_tok")
            }
        for name in ("n_group", "topk_group"):
            values[name] = values.get(name) or 1
        v2 = model_type == "deepseek_v2"
        for name, of_v2, of_v3 in (("topk_method", "greedy", "noaux_tc"), ("scoring_func", "softmax", "sigmoid"), ("norm_topk_prob", False, True),
                                   ("routed_scaling_factor", 1.0, 2.5), ("moe_layer_freq", 1, 1), ("initializer_range", 0.02, 0.02),
                                   ("tie_word_embeddings", False, False)):  # fmt: skip
            if values.get(name) is None:
                values[name] = of_v2 if v2 else of_v3
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "rms_norm_eps", "max_position_embeddings"):
            if values.get(name) is None:
                values.pop(name, None)
        if isinstance(values.get("eos_token_id"), list) and values["eos_token_id"]:
            values["eos_token_id"] = values["eos_token_id"][0]
        if raw.get("num_key_value_heads") not in (None, values["num_attention_heads"]):
            raise ConfigError(
                f"num_key_value_heads ({raw['num_key_value_heads']!r}) must equal num_attention_heads ({values['num_attention_heads']!r}) under MLA"
            )
        values["rope_theta"], values["rope_scaling"] = _read_rope(raw)
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | Path) -> ModelConfig:
        """Reads a `config.json`, or the one inside a folder; at most 1 MB and 32 levels of it, so that a hostile file costs nothing."""
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        if not path.exists():
            raise ConfigError(f"{path} does not exist; give a folder with a config.json, or the file itself")
        if not path.is_file():  # opening a named pipe would wait for ever
            raise ConfigError(f"{path} is not a regular file")
        if path.stat().st_size > 1_000_000:
            raise ConfigError(f"{path} is {path.stat().st_size} bytes; a config.json is at most 1 MB")
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not JSON: {error}") from None
        if not isinstance(raw, dict):
            raise ConfigError(f"{path} holds a {type(raw).__name__}; a config.json is an object")
        if _depth(raw) > 32:
            raise ConfigError(f"{path} is nested {_depth(raw)} levels deep; a config.json has at most 32")
        return cls.from_hf(raw)

    def to_hf(self) -> dict[str, Any]:
        """The object for a `config.json` that transformers, vLLM and SGLang read; null for no query compression.

        A softmax router is written as model type `deepseek_v2`: others read `deepseek_v3` as sigmoid without looking.
        """
        self.settled()
        v2 = self.model_type == "deepseek_v2" or (self.n_routed_experts > 0 and self.scoring_func == "softmax")
        out: dict[str, Any] = {"architectures": ["DeepseekV2ForCausalLM" if v2 else "DeepseekV3ForCausalLM"]}
        for f in fields(self):
            if f.name not in ("rope_scaling", "quantization_config"):
                out[f.name] = getattr(self, f.name)
        out["num_key_value_heads"] = self.num_attention_heads
        if v2:
            out["model_type"] = "deepseek_v2"
        out["rope_scaling"] = None
        if self.rope_scaling is not None:
            out["rope_scaling"] = {"type": "yarn", **{f.name: getattr(self.rope_scaling, f.name) for f in fields(self.rope_scaling)}}
        if self.quantization_config is not None:
            out["quantization_config"] = dict(self.quantization_config)
        out.update(
            hidden_act="silu", attention_bias=False, attention_dropout=0.0, rope_interleave=True, use_cache=True, torch_dtype="float32"
        )
        return out

    def with_(self, **changes: Any) -> ModelConfig:
        """A copy with some fields replaced, validated anew."""
        return replace(self, **changes)


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} ({value!r}) must be a whole number of at least {least}")


def _number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{name} ({value!r}) must be a finite number")


def _depth(value: Any) -> int:
    """Levels of nesting, counted without recursion."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def _read_rope(raw: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """(rope_theta, scaling) from `rope_theta`/`rope_scaling`, or from transformers 5's `rope_parameters`."""
    new, old = raw.get("rope_parameters"), raw.get("rope_scaling")
    for name, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{name} ({value!r}) must be an object or null")
    table = {**(old or {}), **(new or {})}
    theta = table.pop("rope_theta", None)
    theta = raw.get("rope_theta") if theta is None else theta
    theta = 10000.0 if theta is None else theta
    _number("rope_theta", theta)
    kinds = {part[key] for part in (old or {}, new or {}) for key in ("type", "rope_type") if part.get(key) is not None}
    table = {key: value for key, value in table.items() if key not in ("type", "rope_type")}
    if len(kinds) > 1:
        raise ConfigError(
            f"the rope fields name two kinds, {sorted(map(str, kinds))}; keep one of `type` and `rope_type`, in one of rope_scaling and rope_parameters"
        )
    kind = kinds.pop() if kinds else None
    if kind in _NO_SCALING:
        if kind is None and table.get("factor") is not None:
            raise ConfigError('rope_scaling has a factor but neither `type` nor `rope_type`; add "type": "yarn"')
        return float(theta), None
    if kind != "yarn":
        raise ConfigError(f"rope_scaling type ({kind!r}) is not known; use 'yarn', or null for none")
    for name in ("factor", "original_max_position_embeddings"):
        if table.get(name) is None:
            raise ConfigError(
                f"rope_scaling lacks {name}; YaRN cannot be computed without it (max_position_embeddings is the extended length, no substitute)"
            )
    known = {f.name for f in fields(RopeScaling)}
    unknown = sorted(set(table) - known)
    if unknown:
        warnings.warn(f"rope_scaling has fields that this package does not use: {', '.join(unknown)}", stacklevel=3)
    values = {key: value for key, value in table.items() if key in known and value is not None}
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"rope_scaling.{key} ({value!r}) must be a number")
    values = {key: int(value) if key == "original_max_position_embeddings" else float(value) for key, value in values.items()}
    return float(theta), RopeScaling(**values)
