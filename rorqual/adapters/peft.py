"""Adapters in PEFT's folder layout: adapter_config.json and adapter_model.safetensors, which `peft` and vLLM read.

Linear:         base_model.model.NAME.lora_A.weight [r, i]      .lora_B.weight [o, r]
routed experts: stacked as transformers stacks them, gate_up_proj the inner wrapper and down_proj the outer,
                base_model.model.LAYER.mlp.experts[.base_layer].lora_A.weight [e r, i]      .lora_B.weight [o, r e]

The dense and shared FFNs are named as parameters too (`mlp.gate_proj.weight`), which gives the same keys: PEFT 0.21 takes a target
module called gate_proj of this architecture for the routed experts', and would leave the FFN's adapters out without a word.
Adapters of MTP modules stand under their layer numbers; readers that have no MTP modules leave them aside.
Shape letters: i in-features, o out-features, r rank, e expert.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rorqual.adapters import lora
from rorqual.adapters.config import LoraConfig
from rorqual.errors import CheckpointError
from rorqual.model.transformer import CausalLM

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_ATTENTION = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
_FFN = tuple(f"{place}.{name}" for place in ("mlp", "shared_experts") for name in ("gate_proj", "up_proj", "down_proj"))
_EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def save(model: CausalLM, config: LoraConfig, base: str, folder: str | Path) -> None:
    """Writes the model's adapters into an existing folder; `base` is the path or name of the base model."""
    named: dict[str, Tensor] = {}
    for name, layer in lora.adapted(model).items():
        a, b = layer.lora_A.weight.detach().cpu(), layer.lora_B.weight.detach().cpu()
        if isinstance(layer, lora.LoraGroupedLinear):
            stem, _, kind = name.rpartition(".")
            place = f"{_PREFIX}{stem}" + (".base_layer" if kind == "gate_up_proj" else "")
            a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
        else:
            place = f"{_PREFIX}{name}"
        named[f"{place}.lora_A.weight"], named[f"{place}.lora_B.weight"] = a.contiguous(), b.contiguous()
    save_file(named, Path(folder) / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(_description(model, config, base), indent=2, ensure_ascii=False) + "\n"
    (Path(folder) / CONFIG).write_text(text, encoding="utf-8")


def _description(model: CausalLM, config: LoraConfig, base: str) -> dict[str, Any]:
    names = list(lora.adapted(model))
    modules, ffn, experts = (
        [one for one in kind if any(name.endswith(f".{one}") for name in names)] for kind in (_ATTENTION, _FFN, _EXPERTS)
    )
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": config.rank, "lora_alpha": config.scale * config.rank,
        "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "use_rslora": False, "use_dora": False,
        "target_modules": modules, "target_parameters": [*(f"{one}.weight" for one in ffn), *experts] or None, "modules_to_save": None,
    }  # fmt: skip


def load(model: CausalLM, folder: str | Path) -> LoraConfig:
    """Puts the folder's adapters on the model, in place. CheckpointError where they do not fit."""
    description = read_config(folder)
    config = config_of(description)
    lora.apply(model, config)
    adapter = Adapter.read(folder)
    with torch.no_grad():
        for name, layer in lora.adapted(model).items():
            pair = adapter.pairs.pop(name, None)
            if pair is None or pair[0].shape != layer.lora_A.weight.shape or pair[1].shape != layer.lora_B.weight.shape:
                raise CheckpointError(f"{folder} has no adapter for {name} of rank {config.rank}; it belongs to another model")
            layer.lora_A.weight.copy_(pair[0])
            layer.lora_B.weight.copy_(pair[1])
    if adapter.pairs:
        raise CheckpointError(
            f"{folder} has adapters for {', '.join(sorted(adapter.pairs)[:3])}, which this model lacks; it belongs to another model"
        )
    return config


def read_config(folder: str | Path) -> dict[str, Any]:
    """adapter_config.json; CheckpointError where it is none of LoRA's, or asks for what is not kept here."""
    file = Path(folder) / CONFIG
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {error}; give a folder in PEFT's layout") from error
    if not isinstance(raw, dict) or raw.get("peft_type") != "LORA":
        raise CheckpointError(f"{file} is no LoRA configuration (peft_type {raw.get('peft_type') if isinstance(raw, dict) else raw!r})")
    for name, neutral in (
        ("use_dora", False),
        ("use_rslora", False),
        ("fan_in_fan_out", False),
        ("bias", "none"),
        ("modules_to_save", None),
    ):
        if raw.get(name, neutral) not in (neutral, [] if neutral is None else neutral):
            raise CheckpointError(f"{file}: {name} ({raw[name]!r}) is not supported; only plain LoRA is")
    if not isinstance(raw.get("r"), int) or not isinstance(raw.get("lora_alpha"), (int, float)):
        raise CheckpointError(f"{file}: r ({raw.get('r')!r}) and lora_alpha ({raw.get('lora_alpha')!r}) must be numbers")
    return raw


def config_of(raw: Mapping[str, Any]) -> LoraConfig:
    """Rank, scale and targets that a configuration stands for."""
    words = [raw[kind]] if isinstance(raw.get(kind := "target_modules"), str) else [str(one) for one in raw.get(kind) or []]
    parameters = [str(one) for one in raw.get("target_parameters") or []]
    attention = any(name in word for word in words for name in _ATTENTION)
    ffn = any(
        name in word
        for word in words + [one for one in parameters if one.endswith(".weight")]
        for name in ("gate_proj", "up_proj", "down_proj")
    )
    experts = any("experts." in one and not one.endswith(".weight") for one in parameters)
    targets = [("attention", attention), ("ffn", ffn), ("experts", experts)]
    return LoraConfig(rank=raw["r"], alpha=float(raw["lora_alpha"]), targets=tuple(name for name, there in targets if there))


@dataclass
class Adapter:
    """An adapter without its model: {name of the projection: (A, B)}, stacked for routed experts, and the scale of B A."""

    pairs: dict[str, tuple[Tensor, Tensor]]
    scale: float

    @classmethod
    def read(cls, folder: str | Path) -> Adapter:
        """Reads a folder in PEFT's layout; CheckpointError for a name or a shape that is not known."""
        raw = read_config(folder)
        rank, file = int(raw["r"]), Path(folder) / WEIGHTS
        halves: dict[str, dict[str, Tensor]] = {}
        try:
            with safe_open(file, framework="pt") as stored:
                for key in stored.keys():  # noqa: SIM118
                    place, _, half = key.removeprefix(_PREFIX).rpartition(".lora_")
                    if half not in ("A.weight", "B.weight"):
                        raise CheckpointError(f"{file}: {key!r} is no LoRA weight; only plain LoRA is supported")
                    halves.setdefault(_projection(place), {})[half[0]] = stored.get_tensor(key).float()
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {file}: {error}") from error
        pairs = {}
        for name, both in halves.items():
            if both.keys() != {"A", "B"}:
                raise CheckpointError(f"{file}: {name} has only one half of its adapter")
            a, b = both["A"], both["B"]
            if ".mlp.experts." in name:
                a, b = a.view(-1, rank, a.shape[1]), b.view(b.shape[0], rank, -1).permute(2, 0, 1).contiguous()
            pairs[name] = a, b
        return cls(pairs, float(raw["lora_alpha"]) / rank)

    def delta(self, weight: str, begin: int, end: int) -> Tensor | None:
        """Rows begin..end-1 of what is added to a weight by its official name, experts one by one; None where nothing is."""
        stem, _, last = weight.rpartition(".")
        if last != "weight":
            return None
        if stem in self.pairs:
            a, b = self.pairs[stem]
            return self.scale * (b[begin:end] @ a)
        layer, found, rest = stem.partition(".mlp.experts.")
        number, _, kind = rest.partition(".")
        stacked = f"{layer}.mlp.experts.{'down_proj' if kind == 'down_proj' else 'gate_up_proj'}"
        if not found or stacked not in self.pairs:
            return None
        a, b = self.pairs[stacked][0][int(number)], self.pairs[stacked][1][int(number)]
        shift = len(b) // 2 if kind == "up_proj" else 0
        return self.scale * (b[shift + begin : shift + end] @ a)


def _projection(place: str) -> str:
    """The model's name of a projection; the stacked experts' from PEFT's nested wrappers."""
    if place.endswith(".mlp.experts.base_layer"):
        return place.removesuffix("base_layer") + "gate_up_proj"
    return f"{place}.down_proj" if place.endswith(".mlp.experts") else place
