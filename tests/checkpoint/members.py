"""Scaled-down folders of every published member, in exactly its layout: config.json keys, names, dtypes, shards, tokenizer kind, licence files.

    folder = write(tmp_path / "k2", "kimi_k2")                    # as released: FP8 here
    twin = write(tmp_path / "bf16", "kimi_k2", weights="bf16")    # the same values dequantised and rounded once to BF16

Sizes keep the ratios of the original and make every scale shape ragged (136 wide: two blocks of 128; gate and up of 136 rows each are
2 + 2 row blocks and 3 when fused). The quantiser here is written for the tests alone, so that it judges the package's.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from rorqual.config import ModelConfig
from rorqual.planner.inventory import inventory
from rorqual.tokenizer import bpe, special

FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
_YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"}  # fmt: skip
_COMMON: dict[str, Any] = {
    "attention_bias": False, "attention_dropout": 0.0, "aux_loss_alpha": 0.001, "hidden_act": "silu", "initializer_range": 0.02,
    "kv_lora_rank": 512, "moe_layer_freq": 1, "pretraining_tp": 1, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "seq_aux": True,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "v_head_dim": 128,
}  # fmt: skip
_V3: dict[str, Any] = {
    **_COMMON, "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekV3Config", "AutoModel": "modeling_deepseek.DeepseekV3Model",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"},
    "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3, "hidden_size": 7168, "intermediate_size": 18432,
    "max_position_embeddings": 163840, "moe_intermediate_size": 2048, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1,
    "norm_topk_prob": True, "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "quantization_config": FP8, "rms_norm_eps": 1e-06, "rope_scaling": _YARN,
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_group": 4, "topk_method": "noaux_tc",
    "transformers_version": "4.33.1", "vocab_size": 129280,
}  # fmt: skip
_V2: dict[str, Any] = {
    **_COMMON, "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekV2Config", "AutoModel": "modeling_deepseek.DeepseekV2Model",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekV2ForCausalLM"},
    "bos_token_id": 100000, "eos_token_id": 100001, "ep_size": 1, "first_k_dense_replace": 1, "hidden_size": 5120, "intermediate_size": 12288,
    "max_position_embeddings": 163840, "moe_intermediate_size": 1536, "n_group": 8, "n_routed_experts": 160, "n_shared_experts": 2,
    "norm_topk_prob": False, "num_attention_heads": 128, "num_experts_per_tok": 6, "num_hidden_layers": 60, "num_key_value_heads": 128,
    "q_lora_rank": 1536, "rms_norm_eps": 1e-06, "rope_scaling": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707}, "rope_theta": 10000,
    "routed_scaling_factor": 16.0, "scoring_func": "softmax", "topk_group": 3, "topk_method": "group_limited_greedy",
    "transformers_version": "4.39.3", "vocab_size": 102400,
}  # fmt: skip
_MOONLIGHT = {name: value for name, value in _V3.items() if name not in ("quantization_config", "rope_scaling")} | {
    "bos_token_id": 163584, "eos_token_id": 163586, "first_k_dense_replace": 1, "hidden_size": 2048, "intermediate_size": 11264,
    "max_position_embeddings": 8192, "moe_intermediate_size": 1408, "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2,
    "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27, "num_key_value_heads": 16, "num_nextn_predict_layers": 0,
    "q_lora_rank": None, "rms_norm_eps": 1e-05, "rope_theta": 50000.0, "routed_scaling_factor": 2.446, "topk_group": 1,
    "transformers_version": "4.46.3", "vocab_size": 163840,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "v3_671b": _V3,
    "v3_0324": {**_V3, "transformers_version": "4.46.3"},
    "v3_1": {**_V3, "quantization_config": {**FP8, "scale_fmt": "ue8m0"}, "transformers_version": "4.44.2"},
    "r1": {**_V3, "transformers_version": "4.46.3"},
    "v2_236b": _V2,
    "v2_lite_16b": {
        **_V2, "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_group": 1, "n_routed_experts": 64,
        "num_attention_heads": 16, "num_hidden_layers": 27, "num_key_value_heads": 16, "q_lora_rank": None, "routed_scaling_factor": 1.0,
        "topk_group": 1, "topk_method": "greedy", "transformers_version": "4.33.1"},
    "moonlight_16b": _MOONLIGHT,
    "kimi_k2": {
        **{name: value for name, value in _V3.items() if name != "ep_size"}, "model_type": "kimi_k2", "bos_token_id": 163584,
        "eos_token_id": 163585, "first_k_dense_replace": 1, "max_position_embeddings": 131072, "n_group": 1, "n_routed_experts": 384,
        "num_attention_heads": 64, "num_key_value_heads": 64, "num_nextn_predict_layers": 0, "rope_theta": 50000.0,
        "rope_scaling": {**_YARN, "beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0}, "routed_scaling_factor": 2.827, "topk_group": 1,
        "transformers_version": "4.48.3", "vocab_size": 163840},
}  # fmt: skip
"""The published config.json of every member, at full size."""

NAMES = tuple(PUBLISHED)
KIMI = ("moonlight_16b", "kimi_k2")
"""Members with a tiktoken.model."""
IN_FP8 = tuple(name for name in NAMES if "quantization_config" in PUBLISHED[name])

# ranks of the tiny vocabularies: the 256 bytes, then these, each a merge of two earlier ones
_MERGES = ("th", "he", "in", "er", "an", " t", "the", " a", "on", "re", "ing", " the", "  ", "or", "an\n", "12", "123", "e ", " in", "\n\n", "ou",
           " is", "\u00e9", "\u6df1", "\u5ea6", "wor", "ll", "hell", "hello", "ld", "world", " world")  # fmt: skip
RESERVED = 256  # ids after the base vocabulary of Moonlight and K2
KIMI_SPECIAL = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 4: "<|im_assistant|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>",
                9: "[EOT]", 10: "<|im_system|>", 17: "<|im_middle|>", 254: "[UNK]", 255: "[PAD]"}  # fmt: skip
"""Offset after the base vocabulary: special token; the rest is `<|reserved_token_ID|>`."""
KIMI_PATTERN = "|".join(
    [
        r"[\p{Han}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
"""The split pattern that Moonlight and K2 publish."""


def ranks() -> dict[bytes, int]:
    """A small tiktoken vocabulary: {token bytes: rank}, where each token of two bytes or more is a merge of two of lower rank."""
    table = {bytes([byte]): byte for byte in range(256)}

    def add(token: bytes) -> None:
        if token in table:
            return
        if not any(token[:cut] in table and token[cut:] in table for cut in range(1, len(token))):
            add(token[:-1])
        table[token] = len(table)

    for merge in _MERGES:
        add(merge.encode())
    return table


def config_json(name: str, **changes: Any) -> dict[str, Any]:
    """The scaled-down config.json: the published keys, small sizes in similar ratios; `changes` replace keys (`...` removes one)."""
    raw = dict(PUBLISHED[name])
    v2, kimi = name.startswith("v2"), name in KIMI
    base = len(ranks())
    heads = {"kimi_k2": 2}.get(name, 4)
    small: dict[str, Any] = {
        "hidden_size": 136, "intermediate_size": 272, "moe_intermediate_size": 136, "kv_lora_rank": 128, "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16, "v_head_dim": 32, "num_attention_heads": heads, "num_key_value_heads": heads,
        "q_lora_rank": raw["q_lora_rank"] and 48, "num_hidden_layers": raw["first_k_dense_replace"] + 2,
        "n_routed_experts": 24 if name == "kimi_k2" else 16, "num_experts_per_tok": 4, "max_position_embeddings": 512,
        "vocab_size": base + (RESERVED if kimi else 32),
    }  # fmt: skip
    if raw.get("rope_scaling"):
        small["rope_scaling"] = {**raw["rope_scaling"], "original_max_position_embeddings": 64}
        small["max_position_embeddings"] = int(64 * raw["rope_scaling"]["factor"])
    if kimi or v2:
        small["bos_token_id"] = base
        small["eos_token_id"] = base + (raw["eos_token_id"] - raw["bos_token_id"])
    merged = {**raw, **small, **changes}
    return {key: value for key, value in merged.items() if value is not ...}


# ---------------------------------------------------------------------- tensors


def quantise(weight: Tensor, block: tuple[int, int], power_of_two: bool, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(E4M3 codes, scales in `scale_dtype`, the FP32 values that they stand for); block by block, slow and plain."""
    rows, columns = weight.shape
    scales = torch.empty(-(-rows // block[0]), -(-columns // block[1]))
    codes, back = torch.empty(rows, columns, dtype=torch.float8_e4m3fn), torch.empty(rows, columns)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            part = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
            scale = weight[part].abs().max().clamp(min=1e-12) / 448
            scale = torch.exp2(torch.ceil(torch.log2(scale))) if power_of_two else scale
            scale = scale.to(scale_dtype).float()
            scales[i, j] = scale
            codes[part] = (weight[part] / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
            back[part] = codes[part].float() * scale
    return codes, scales.to(scale_dtype), back


_SCALE_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "e8m0": torch.float8_e8m0fnu}


def tensors(config: ModelConfig, *, scales: str = "f32", power_of_two: bool = False, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # fmt: skip
    """Random weights twice, under official names: (as FP8 with scales, as BF16 that holds the same values rounded once).

    Copies of embedding and head in MTP modules equal the originals; router biases are FP32, near 4, as close together as BF16 cannot hold.
    The tensors are shared between calls: do not change them in place.
    """
    key = json.dumps([asdict(config.with_(model_type="deepseek_v3", quantization_config=None)), scales, power_of_two, seed])
    block = (config.quantization_config or FP8)["weight_block_size"]
    coded, plain = _made(f"{key}{block}", config, tuple(block), scales, power_of_two, seed)
    return dict(coded), dict(plain)


_MADE: dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}  # the last few: members of one shape, and twins, share their weights


def _made(key: str, config: ModelConfig, block: tuple[int, int], scales: str, power_of_two: bool, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # fmt: skip
    if key in _MADE:
        return _MADE[key]
    while len(_MADE) >= 6:
        _MADE.pop(next(iter(_MADE)))
    layout = inventory(config.with_(quantization_config={**FP8, "weight_block_size": list(block)}))
    coded: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for one in layout:
        if one.name.endswith("_scale_inv"):
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(one.name.encode()) + seed)
        value = torch.randn(one.shape, generator=generator)
        if one.name.endswith("e_score_correction_bias"):
            coded[one.name] = plain[one.name] = 4 + 0.03 * value
        elif one.dtype == "F8_E4M3":
            power = power_of_two or scales == "e8m0"
            codes, scale, back = quantise(value * 0.08, block, power, _SCALE_DTYPES[scales])
            coded[one.name], coded[f"{one.name}_scale_inv"] = codes, scale
            plain[one.name] = back.bfloat16()
        else:
            value = 1 + 0.1 * value if "norm" in one.name else value * (0.5 if "embed_tokens" in one.name else 0.08)
            coded[one.name] = plain[one.name] = value.bfloat16()
    for table in (coded, plain):
        for name in list(table):
            if name.startswith("model.layers.") and name.endswith("embed_tokens.weight"):
                table[name] = table["model.embed_tokens.weight"].clone()
            elif name.endswith("shared_head.head.weight"):
                table[name] = table.get("lm_head.weight", table["model.embed_tokens.weight"]).clone()
    return _MADE.setdefault(key, (coded, plain))


# ---------------------------------------------------------------------- folders


def write(
    folder: Path, name: str, *, weights: str | None = None, scales: str = "f32", shards: int = 3, tokenizer: bool = True, seed: int = 0, **changes: Any
) -> Path:  # fmt: skip
    """Makes `folder`, a scaled-down `name`; `changes` go to `config_json`.

    `weights` "fp8" or "bf16" (None: as the member is released); both of one seed and `scales` ("f32", "bf16", "e8m0") hold the same
    values. V3.1's scales are powers of two in FP32 unless `scales` says otherwise. `shards=1` is one file without an index.
    """
    raw = config_json(name, **changes)
    power = raw.get("quantization_config", {}).get("scale_fmt") == "ue8m0"
    weights = weights or ("fp8" if "quantization_config" in raw else "bf16")
    raw["quantization_config"] = raw.get("quantization_config", FP8)
    config = ModelConfig.from_hf(raw)
    coded, plain = tensors(config, scales=scales, power_of_two=power, seed=seed)
    if weights == "bf16":
        del raw["quantization_config"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw, indent=2))
    _save(folder, coded if weights == "fp8" else plain, shards)
    _side_files(folder, name, raw)
    if tokenizer:
        write_tokenizer(folder, name)
    return folder


def _save(folder: Path, table: dict[str, Tensor], shards: int) -> None:
    """In order of names over `shards` files named as the releases are (six digits in the total), with an index without metadata."""
    if shards == 1:
        safetensors.torch.save_file(table, folder / "model.safetensors", {"format": "pt"})
        return
    names = list(table)
    weight_map = {}
    for number in range(shards):
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        file = f"model-{number + 1:05d}-of-{shards:06d}.safetensors"
        safetensors.torch.save_file({name: table[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


_DEEPSEEK_LICENCE = "DEEPSEEK LICENSE AGREEMENT\n\nVersion 1.0, 23 October 2023\n\nAttachment A: Use Restrictions\n"
_LICENCES = {
    "v3_671b": {"LICENSE-CODE": "MIT License\n", "LICENSE-MODEL": _DEEPSEEK_LICENCE},
    "v2_236b": {"LICENSE": _DEEPSEEK_LICENCE},
    "v2_lite_16b": {"LICENSE": _DEEPSEEK_LICENCE},
    "r1": {"LICENSE": "MIT License\n", "README.md": "---\nlicense: mit\nlibrary_name: transformers\n---\n# R1\n"},
    "v3_0324": {"LICENSE": "MIT License\n", "README.md": "---\nlicense: mit\nlibrary_name: transformers\n---\n# V3-0324\n"},
    "v3_1": {"LICENSE": "MIT License\n", "README.md": "---\nlicense: mit\nlibrary_name: transformers\n---\n# V3.1\n"},
    "moonlight_16b": {"README.md": "---\nlicense: mit\nlibrary_name: transformers\n---\n# Moonlight\n"},
    "kimi_k2": {"LICENSE": "Modified MIT License\n", "README.md": "---\nlicense: other\nlicense_name: modified-mit\n---\n# Kimi K2\n"},
}


def _side_files(folder: Path, name: str, raw: dict[str, Any]) -> None:
    """What lies beside the weights: generation settings, licences, and Python files that nobody may run."""
    settings = {"_from_model_config": True, "bos_token_id": raw["bos_token_id"], "eos_token_id": raw["eos_token_id"]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    for file, text in _LICENCES[name].items():
        (folder / file).write_text(text)
    for module in {value.split(".")[0] for value in raw.get("auto_map", {}).values()}:
        (folder / f"{module}.py").write_text("raise RuntimeError('remote code was run')\n")


def write_tokenizer(folder: Path, name: str) -> None:
    """A tiny tokenizer in the member's kind: `tokenizer.json` (V3: BOS, EOS, PAD are 0, 1, 2; V2: BOS, EOS after the base) or `tiktoken.model`."""
    table = ranks()
    if name in KIMI:
        lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in table.items()]
        (folder / "tiktoken.model").write_text("\n".join(lines) + "\n")
        decoder = {
            str(len(table) + offset): {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
            for offset, text in KIMI_SPECIAL.items()
        }  # fmt: skip
        settings = {"added_tokens_decoder": decoder, "additional_special_tokens": [t for t in KIMI_SPECIAL.values() if t.startswith("<|")],
                    "bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]", "pad_token": "[PAD]", "clean_up_tokenization_spaces": False,
                    "extra_special_tokens": {}, "model_max_length": 1000000000000000019884624838656, "tokenizer_class": "TikTokenTokenizer",
                    "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]}}  # fmt: skip
        (folder / "tokenization_kimi.py").write_text("raise RuntimeError('remote code was run')\n")
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return
    alphabet = bpe.byte_alphabet()
    spelled = {"".join(alphabet[byte] for byte in token): rank for token, rank in table.items()}
    merges = []
    for token, rank in table.items():
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token)) if token[:cut] in table and token[cut:] in table]
        if cuts:
            left, right = min(cuts, key=lambda pair: max(table[pair[0]], table[pair[1]]))
            assert max(table[left], table[right]) < rank
            merges.append([bytes_to_text(left, alphabet), bytes_to_text(right, alphabet)])
    first = 0 if name.startswith("v2") else len(special.LEADING)
    vocabulary = {token: rank + first for token, rank in spelled.items()}
    added = [*special.LEADING] if first else [special.BOS, special.EOS]
    ids = range(first) if first else range(len(table), len(table) + 2)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    if first:
        vocabulary |= dict(zip(added, ids, strict=True))
    added_tokens = [{"id": number, "content": text, **flags} for number, text in zip(ids, added, strict=True)]
    if first:
        trailing = range(len(table) + first, len(table) + first + len(special.TRAILING))
        added_tokens += [{"id": number, "content": text, **flags} for number, text in zip(trailing, special.TRAILING, strict=True)]
    patterns = special.SPLITS if first else (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"\p{N}")
    splits: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False} for pattern in patterns
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added_tokens, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]}, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary, "merges": merges},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    settings = {"add_bos_token": not first, "add_eos_token": False, "bos_token": special.BOS, "eos_token": special.EOS,
                "pad_token": special.EOS, "clean_up_tokenization_spaces": False, "model_max_length": 131072,
                "tokenizer_class": "LlamaTokenizerFast"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def bytes_to_text(token: bytes, alphabet: list[str]) -> str:
    """A token in the spelling of byte-level vocabularies."""
    return "".join(alphabet[byte] for byte in token)
