"""Which tensors a folder must hold, and which of its names is which; imports no torch (checkpoint layout: specification 10.2, 10.3).

Written lazily, so that a hostile configuration with a billion experts is refused at the first missing name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

from rorqual.checkpoint.shards import some
from rorqual.config import ABSENT, ModelConfig
from rorqual.errors import CheckpointError

Shape = tuple[int, ...]

EMBEDDING, HEAD, BIAS = "model.embed_tokens.weight", "lm_head.weight", "mlp.gate.e_score_correction_bias"
SCALE = "_scale_inv"
"""What the name of an FP8 weight's scales adds to the weight's."""
MTP_MARKS = ("eh_proj.weight", "enorm.weight", "hnorm.weight", "shared_head.norm.weight")
_LAYER = re.compile(r"model\.layers\.(0|[1-9]\d{0,8})\.(.+)")


def quantised(name: str) -> bool:
    """Whether the layout stores this tensor in FP8: every Linear of attention and FFNs; not router, embedding, head, norms, eh_proj."""
    return name.endswith(("_proj.weight", "kv_a_proj_with_mqa.weight")) and not name.endswith("eh_proj.weight")


def expected(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    """Official name and shape of every tensor that defines the model; MTP modules without their copies of embedding and head."""
    config.settled()
    yield EMBEDDING, (config.vocab_size, config.hidden_size)
    for layer in range(config.num_blocks):
        for tail, shape in _block(config, layer):
            yield f"model.layers.{layer}.{tail}", shape
    yield "model.norm.weight", (config.hidden_size,)
    if not config.tie_word_embeddings:
        yield HEAD, (config.vocab_size, config.hidden_size)


def _block(config: ModelConfig, layer: int) -> Iterator[tuple[str, Shape]]:
    width, heads, latent = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    yield "input_layernorm.weight", (width,)
    if config.q_lora_rank is None:
        yield "self_attn.q_proj.weight", (heads * config.qk_head_dim, width)
    else:
        yield "self_attn.q_a_proj.weight", (config.q_lora_rank, width)
        yield "self_attn.q_a_layernorm.weight", (config.q_lora_rank,)
        yield "self_attn.q_b_proj.weight", (heads * config.qk_head_dim, config.q_lora_rank)
    yield "self_attn.kv_a_proj_with_mqa.weight", (latent + config.qk_rope_head_dim, width)
    yield "self_attn.kv_a_layernorm.weight", (latent,)
    yield "self_attn.kv_b_proj.weight", (heads * (config.qk_nope_head_dim + config.v_head_dim), latent)
    yield "self_attn.o_proj.weight", (width, heads * config.v_head_dim)
    yield "post_attention_layernorm.weight", (width,)
    if config.is_moe(layer):
        experts = config.n_routed_experts
        yield "mlp.gate.weight", (experts, width)
        if config.topk_method == "noaux_tc":
            yield BIAS, (experts,)
        if config.n_shared_experts:
            yield from _ffn("mlp.shared_experts", width, config.n_shared_experts * config.moe_intermediate_size)
        for expert in range(experts):
            yield from _ffn(f"mlp.experts.{expert}", width, config.moe_intermediate_size)
    else:
        yield from _ffn("mlp", width, config.intermediate_size)
    if config.is_mtp(layer):
        yield "enorm.weight", (width,)
        yield "hnorm.weight", (width,)
        yield "eh_proj.weight", (width, 2 * width)
        yield "shared_head.norm.weight", (width,)


def _ffn(stem: str, width: int, inner: int) -> Iterator[tuple[str, Shape]]:
    yield f"{stem}.gate_proj.weight", (inner, width)
    yield f"{stem}.up_proj.weight", (inner, width)
    yield f"{stem}.down_proj.weight", (width, inner)


def copies(config: ModelConfig) -> dict[str, str]:
    """Tensors that the layout repeats: {name of the copy: name of the original}. Each MTP module carries embedding and head."""
    head = EMBEDDING if config.tie_word_embeddings else HEAD
    pairs = {}
    for layer in range(config.num_hidden_layers, config.num_blocks):
        pairs[f"model.layers.{layer}.embed_tokens.weight"] = EMBEDDING
        pairs[f"model.layers.{layer}.shared_head.head.weight"] = head
    return pairs


def settle(config: ModelConfig, shapes: Mapping[str, Shape]) -> ModelConfig:
    """Decides an absent `q_lora_rank` by the tensors found: `q_proj` means none, `q_a_proj` gives the rank (field case F01)."""
    if config.q_lora_rank != ABSENT:
        return config
    plain = any(name.endswith("self_attn.q_proj.weight") for name in shapes)
    ranks = {shape[0] for name, shape in shapes.items() if name.endswith("self_attn.q_a_proj.weight") and shape}
    if plain and not ranks:
        return config.with_(q_lora_rank=None)
    if len(ranks) == 1 and not plain:
        return config.with_(q_lora_rank=ranks.pop())
    raise CheckpointError(
        f"config.json lacks q_lora_rank and the tensors do not settle it: q_proj {'found' if plain else 'absent'}, q_a_proj of rank {sorted(ranks) or 'none'}; write the rank, or null, into config.json"
    )


@dataclass
class Match:
    """How a folder's names map to the model's: which tensor fills which, and what is left over."""

    config: ModelConfig
    sources: dict[str, str]  # official name -> name in the folder, for every tensor of `expected(config)`
    repeated: dict[str, str]  # name in the folder -> official name of the tensor that it should equal
    skipped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def match(config: ModelConfig, shapes: Mapping[str, Shape]) -> Match:
    """Accounts for every name of a folder, or raises CheckpointError with the names that are missing or misshapen.

    Names may lack the prefix `model.`. MTP modules are recognised by their own tensors (`eh_proj`, `enorm`, ...), never by a
    layer number alone: with layers cut from the configuration, the layers in between are skipped (field case F17).
    """
    config = settle(config, shapes)
    plain = {}
    for name in shapes:
        official = name if name.startswith(("model.", HEAD)) else f"model.{name}"
        if official in plain:
            raise CheckpointError(f"tensor {official!r} is there twice, with and without the prefix 'model.'")
        plain[official] = name
    found = Match(config, {}, {})
    layers = _place_mtp(found, plain)
    known = {}
    for official, name in plain.items():
        layer = _LAYER.fullmatch(official)
        if layer is None:
            known[official] = name
        elif int(layer[1]) in layers:
            known[f"model.layers.{layers[int(layer[1])]}.{layer[2]}"] = name
        else:
            found.skipped.append(name)
    _fill(found, known, shapes)
    for official, original in [*copies(found.config).items(), *([(HEAD, EMBEDDING)] if config.tie_word_embeddings else [])]:
        if official in known:
            found.repeated[known.pop(official)] = original
    found.skipped += known.values()
    if found.skipped:
        found.notices.append(f"skipped {some(found.skipped)}: not part of the model that config.json describes")
    return found


def _place_mtp(found: Match, names: Iterable[str]) -> dict[int, int]:
    """{layer number in the folder: block number in the model}; adapts num_nextn_predict_layers to the modules that are there."""
    config = found.config
    present, modules = set(), set()
    for name in names:
        layer = _LAYER.fullmatch(name)
        if layer:
            present.add(int(layer[1]))
            if layer[2] in MTP_MARKS:
                modules.add(int(layer[1]))
    early = sorted(layer for layer in modules if layer < config.num_hidden_layers)
    if early:
        raise CheckpointError(
            f"layer {early[0]} is an MTP module (it has eh_proj or enorm), but num_hidden_layers ({config.num_hidden_layers}) counts it as an ordinary layer; set num_hidden_layers to {early[0]} or less"
        )
    wanted, chosen = config.num_nextn_predict_layers, sorted(modules)[: config.num_nextn_predict_layers]
    placed = {layer: layer for layer in present if layer < config.num_hidden_layers}
    placed |= {layer: config.num_hidden_layers + index for index, layer in enumerate(chosen)}
    if len(chosen) < wanted:
        found.missing = [f"model.layers.{config.num_hidden_layers + index}.*" for index in range(len(chosen), wanted)]
        found.config = replace(config, num_nextn_predict_layers=len(chosen))
        found.notices.append(
            f"num_nextn_predict_layers is {wanted}, the folder holds {len(chosen)} MTP module{'s' * (len(chosen) != 1)}: loaded with {len(chosen)}, so MTP prediction beyond that is not available"
        )
    elif len(modules) > wanted:
        found.notices.append(
            f"num_nextn_predict_layers is {wanted}, the folder holds {len(modules)} MTP module{'s' * (len(modules) != 1)}: the rest is ignored"
        )
    return placed


def _fill(found: Match, known: dict[str, str], shapes: Mapping[str, Shape]) -> None:
    """Moves every expected name from `known` to the match; all checks of names and shapes are here."""

    def absent() -> Iterator[str]:
        for official, shape in expected(found.config):
            name = known.pop(official, None)
            if name is None:
                yield official
            elif shapes[name] != shape:
                raise CheckpointError(
                    f"tensor {name!r} has shape {list(shapes[name])}, config.json makes it {list(shape)}; configuration and weights do not belong together"
                )
            else:
                found.sources[official] = name

    missing = list(islice(absent(), 20))
    if not missing:
        return
    text = f"the folder lacks {some(missing)}{'' if len(missing) < 20 else ', or more'}"
    if any(name.endswith(BIAS) for name in missing):
        text += "; topk_method 'noaux_tc' needs the router's bias, which is never made up"
    elif missing == [HEAD]:
        text += "; tie_word_embeddings is false, and a head is never made up: set it to true if the embedding is the head"
    elif any(".self_attn.q_" in name for name in missing):
        text += f"; q_lora_rank is {found.config.q_lora_rank}, check it against the tensors"
    repeated = copies(found.config)
    left = list(islice((known[name] for name in known if name not in repeated), 5)) if len(missing) < 20 else []
    raise CheckpointError(text + (f"; not used: {some(left)}" if left else ""))
