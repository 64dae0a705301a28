"""GGUF files of architecture `deepseek2` for llama.cpp, through the `gguf` package (specification section 10.2).

    write(FolderSource("DeepSeek-V2-Lite"), "DeepSeek-V2-Lite", "lite.gguf", outtype="q8_0")

kv_b is split into W_UK, transposed per head, and W_UV, so that llama.cpp runs the absorbed form; experts are stacked. Norms, router and
vectors stay in FP32. Tensors are written one expert at a time, so memory is bounded by the largest single matrix. GGUF has no place for
MTP modules: they are left out. Adjacent rotary pairs are what llama.cpp expects of this architecture, so no rows move. llama.cpp tells a
model without query compression by its 26 or 27 layers (V2-Lite, Moonlight): with other depths it will not load one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rorqual.checkpoint.folder import explained, require_space, sync
from rorqual.checkpoint.reader import Progress
from rorqual.checkpoint.source import Source
from rorqual.config import ModelConfig
from rorqual.errors import CheckpointError, MissingExtraError

OUTTYPES = ("f32", "f16", "q8_0")
_Q8_BLOCK = 32  # values of a Q8_0 block: an FP16 scale and as many int8
_FLOATS: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16)}


@dataclass(frozen=True)
class Planned:
    """A tensor of the file: name, shape as NumPy has it, "f32", "f16" or "q8_0", and its data piece by piece along the first axis."""

    name: str
    shape: tuple[int, ...]
    kind: str
    pieces: Callable[[], Iterator[NDArray[np.float32]]]

    @property
    def num_bytes(self) -> int:
        """Bytes of data."""
        count = int(np.prod(self.shape, dtype=np.int64))
        return count // _Q8_BLOCK * (2 + _Q8_BLOCK) if self.kind == "q8_0" else count * _FLOATS[self.kind].itemsize


def write(source: Source, tokenizer: str | Path | None, out: str | Path, *, outtype: str = "f16", progress: Progress | None = None) -> Path:
    """Writes one GGUF file and returns its path; it appears whole or not at all.

    CheckpointError for an unknown outtype or a model that the format cannot hold, MissingExtraError without the `gguf` package.
    Without a tokenizer folder the file says that it has none.
    """
    try:
        import gguf
    except ImportError:
        raise MissingExtraError("GGUF export", "gguf", "gguf") from None
    if outtype not in OUTTYPES:
        raise CheckpointError(f"outtype ({outtype!r}) must be one of {', '.join(OUTTYPES)}")
    config = source.config
    _check(config)
    plan = list(_tensors(source, outtype))
    final = Path(out).absolute()
    partial = final.with_name(f".{final.name}.partial")
    total = sum(one.num_bytes for one in plan)
    with explained(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        require_space(final.parent, total)
        writer = gguf.GGUFWriter(partial, "deepseek2")
        try:
            _metadata(writer, config, outtype)
            _tokenizer(writer, config, None if tokenizer is None else Path(tokenizer), gguf)
            types = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
            for one in plan:
                writer.add_tensor_info(one.name, one.shape, np.dtype(np.float32), one.num_bytes, raw_dtype=types[one.kind])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            file = writer.fout[0]
            writer.write_padding(file, file.tell())
            done = 0
            for one in plan:
                if progress is not None:
                    progress(done, total, one.name)
                for piece in one.pieces():
                    _encode(piece, one.kind).tofile(file)
                writer.write_padding(file, one.num_bytes)
                done += one.num_bytes
            writer.close()
            sync(partial)
            os.replace(partial, final)
        except BaseException:
            for opened in writer.fout or []:
                opened.close()
            partial.unlink(missing_ok=True)
            raise
    if progress is not None:
        progress(total, total, "")
    return final


def _check(config: ModelConfig) -> None:
    if config.moe_layer_freq != 1:
        raise CheckpointError(f"moe_layer_freq ({config.moe_layer_freq}) must be 1: GGUF knows only a number of leading dense layers")
    if config.num_hidden_layers in (26, 27) and config.q_lora_rank is not None:
        raise CheckpointError(
            f"num_hidden_layers ({config.num_hidden_layers}): llama.cpp takes 26 and 27 layers for a model without query compression, and this one has it"
        )
    if config.n_routed_experts and not config.is_moe(config.num_hidden_layers - 1):
        raise CheckpointError("the last layer has no experts: GGUF cannot say that a model with experts has none in its trunk")


# ---------------------------------------------------------------------- tensors


def _tensors(source: Source, outtype: str) -> Iterator[Planned]:
    config = source.config

    def whole(name: str) -> NDArray[np.float32]:
        return source.rows(name, 0, source.shape(name)[0]).float().numpy()

    def kind(shape: tuple[int, ...], plain: bool) -> str:
        if plain or len(shape) == 1:
            return "f32"
        return "f16" if outtype == "q8_0" and shape[-1] % _Q8_BLOCK else outtype

    def one(name: str, official: str, plain: bool = False) -> Planned:
        shape = source.shape(official)
        return Planned(name, shape, kind(shape, plain), lambda: iter([whole(official)]))

    def made(name: str, shape: tuple[int, ...], pieces: Callable[[], Iterator[NDArray[np.float32]]]) -> Planned:
        return Planned(name, shape, kind(shape, False), pieces)

    yield one("token_embd.weight", "model.embed_tokens.weight")
    yield one("output_norm.weight", "model.norm.weight")
    if not config.tie_word_embeddings:
        yield one("output.weight", "lm_head.weight")
    heads, nope, v, latent = config.num_attention_heads, config.qk_nope_head_dim, config.v_head_dim, config.kv_lora_rank
    for layer in range(config.num_hidden_layers):
        old, new = f"model.layers.{layer}.", f"blk.{layer}."
        yield one(f"{new}attn_norm.weight", f"{old}input_layernorm.weight")
        attention = [("attn_kv_a_mqa", "kv_a_proj_with_mqa"), ("attn_kv_a_norm", "kv_a_layernorm"), ("attn_output", "o_proj")]
        if config.q_lora_rank is None:
            attention.insert(0, ("attn_q", "q_proj"))
        else:
            attention = [("attn_q_a", "q_a_proj"), ("attn_q_a_norm", "q_a_layernorm"), ("attn_q_b", "q_b_proj"), *attention]
        for name, official in attention:
            yield one(f"{new}{name}.weight", f"{old}self_attn.{official}.weight")
        kv_b = f"{old}self_attn.kv_b_proj.weight"

        def split(key: bool, kv_b: str = kv_b) -> Iterator[NDArray[np.float32]]:
            each = whole(kv_b).reshape(heads, nope + v, latent)
            yield np.ascontiguousarray(each[:, :nope].transpose(0, 2, 1) if key else each[:, nope:])

        yield made(f"{new}attn_k_b.weight", (heads, latent, nope), lambda split=split: split(True))  # type: ignore[misc]
        yield made(f"{new}attn_v_b.weight", (heads, v, latent), lambda split=split: split(False))  # type: ignore[misc]
        yield one(f"{new}ffn_norm.weight", f"{old}post_attention_layernorm.weight")
        if not config.is_moe(layer):
            for part in ("gate", "up", "down"):
                yield one(f"{new}ffn_{part}.weight", f"{old}mlp.{part}_proj.weight")
            continue
        yield one(f"{new}ffn_gate_inp.weight", f"{old}mlp.gate.weight", plain=True)
        if config.topk_method == "noaux_tc":
            yield one(f"{new}exp_probs_b.bias", f"{old}mlp.gate.e_score_correction_bias", plain=True)
        for part in ("gate", "up", "down"):
            names = [f"{old}mlp.experts.{expert}.{part}_proj.weight" for expert in range(config.n_routed_experts)]
            shape = (len(names), *source.shape(names[0]))
            yield made(f"{new}ffn_{part}_exps.weight", shape, lambda names=names: (whole(name) for name in names))  # type: ignore[misc]
            if config.n_shared_experts:
                yield one(f"{new}ffn_{part}_shexp.weight", f"{old}mlp.shared_experts.{part}_proj.weight")


def _encode(values: NDArray[np.float32], kind: str) -> NDArray[Any]:
    """The bytes of a piece. Q8_0: per 32 values a scale max|x| / 127 in FP16, and x / scale rounded to nearest, halves away from zero."""
    if kind != "q8_0":
        return values.astype(_FLOATS[kind])
    blocks = values.reshape(-1, _Q8_BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    codes = blocks * inverse
    codes = np.trunc(codes + np.copysign(np.float32(0.5), codes)).astype(np.int8)
    return np.concatenate([scale.astype(np.float16).view(np.uint8), codes.view(np.uint8)], axis=1)


# ---------------------------------------------------------------------- metadata


def _metadata(writer: Any, config: ModelConfig, outtype: str) -> None:
    """Every field of the architecture that llama.cpp reads."""
    entry = config.kv_lora_rank + config.qk_rope_head_dim
    numbers = {
        "vocab_size": config.vocab_size, "block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size, "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": 1, "attention.kv_lora_rank": config.kv_lora_rank, "attention.key_length": entry,
        "attention.value_length": config.kv_lora_rank, "attention.key_length_mla": config.qk_head_dim, "attention.value_length_mla": config.v_head_dim,
        "rope.dimension_count": config.qk_rope_head_dim,
        "leading_dense_block_count": sum(not config.is_moe(layer) for layer in range(config.num_hidden_layers)),
    }  # fmt: skip
    if config.q_lora_rank is not None:
        numbers["attention.q_lora_rank"] = config.q_lora_rank
    floats = {"attention.layer_norm_rms_epsilon": config.rms_norm_eps, "rope.freq_base": config.rope_theta}
    if config.n_routed_experts:
        numbers |= {
            "expert_feed_forward_length": config.moe_intermediate_size, "expert_count": config.n_routed_experts,
            "expert_used_count": config.num_experts_per_tok, "expert_shared_count": config.n_shared_experts,
            "expert_gating_func": 2 if config.scoring_func == "sigmoid" else 1,
        }  # fmt: skip
        if config.n_group > 1 and config.topk_method != "greedy":
            numbers |= {"expert_group_count": config.n_group, "expert_group_used_count": config.topk_group}
        floats["expert_weights_scale"] = config.routed_scaling_factor
        writer.add_bool("deepseek2.expert_weights_norm", config.norm_topk_prob)
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        writer.add_string("deepseek2.rope.scaling.type", "yarn")
        floats |= {"rope.scaling.factor": scaling.factor, "rope.scaling.yarn_log_multiplier": 0.1 * scaling.mscale_all_dim,
                   "rope.scaling.yarn_beta_fast": scaling.beta_fast, "rope.scaling.yarn_beta_slow": scaling.beta_slow}  # fmt: skip
        numbers["rope.scaling.original_context_length"] = scaling.original_max_position_embeddings
    for name, value in numbers.items():
        writer.add_uint32(f"deepseek2.{name}", value)
    for name, real in floats.items():
        writer.add_float32(f"deepseek2.{name}", real)
    writer.add_uint32("general.file_type", {"f32": 0, "f16": 1, "q8_0": 7}[outtype])


def _tokenizer(writer: Any, config: ModelConfig, folder: Path | None, gguf: Any) -> None:
    """Tokens, merges and special ids; ids that no token has are marked as unused."""
    if folder is None:
        writer.add_tokenizer_model("none")
        return
    from rorqual.tokenizer import bpe, ranks, special

    tokenizer = bpe.load(folder)
    content = tokenizer.content()
    kinds = gguf.TokenType
    tokens = [f"[PAD{number}]" for number in range(config.vocab_size)]
    types = [int(kinds.UNUSED)] * config.vocab_size
    for text, number in content["model"]["vocab"].items():
        tokens[number], types[number] = text, int(kinds.NORMAL)
    for added in content.get("added_tokens", []):
        tokens[added["id"]] = added["content"]
        types[added["id"]] = int(kinds.CONTROL if added.get("special") else kinds.USER_DEFINED)
    splits = [
        one["pattern"].get("Regex") for one in (content.get("pre_tokenizer") or {}).get("pretokenizers", []) if one.get("type") == "Split"
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre(splits, {special.SPLITS: "deepseek-v3", (ranks.SPLIT,): "kimi-k2"}))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"].get("merges", [])])
    for name, number in (("bos", config.bos_token_id), ("eos", config.eos_token_id), ("padding", config.pad_token_id)):
        if number is not None:
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    writer.add_add_bos_token(tokenizer.adds_bos)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _pre(splits: list[Any], known: dict[tuple[str, ...], str]) -> str:
    """llama.cpp's name for how a tokenizer splits text; CheckpointError for a way that has none here, since ids would be wrong unseen."""
    found = known.get(tuple(splits))
    if (
        found is None
        and splits[:1] in (["[\r\n]"], [r"[\r\n]"])
        and len(splits) > 2
        and str(splits[1]).startswith((r"\s?\p{L}+", r"\s?[A-Za-z"))
    ):
        found = "deepseek-llm"  # V2's generation
    if found is None:
        names = ", ".join([*known.values(), "deepseek-llm"])
        raise CheckpointError(f"the tokenizer splits text by {splits or 'no pattern'}, which is none of {names}; GGUF can name only those")
    return found


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a GGUF file, dequantised to FP32, in NumPy's order of axes."""
    import gguf

    found = {}
    for one in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(one.data, one.tensor_type) if one.tensor_type not in (0, 1) else one.data
        found[one.name] = torch.from_numpy(np.array(values, dtype=np.float32).reshape([int(n) for n in reversed(one.shape)]))
    return found
