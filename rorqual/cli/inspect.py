"""Show what a model folder holds: parameters, tensors, bytes, cache per token, and what it lacks or has too much.

rorqual inspect DIR                  # a model folder: its files against its config.json; exit code 1 when they do not fit
rorqual inspect runs/laptop          # the model that a run exported
rorqual inspect config.json          # a configuration alone
rorqual inspect --preset v3_671b --json

rorqual inspect DIR --verify         # also reads every byte of every tensor

Without --verify reads configurations and safetensors headers only: no tensor data, no torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from rorqual.checkpoint.card import NOT_RECORDED, licence_of_folder, licence_of_preset
from rorqual.checkpoint.names import HEAD, SCALE, settle
from rorqual.checkpoint.shards import INDEX_NAME, ShardFolder, open_folder
from rorqual.config import ModelConfig
from rorqual.errors import ConfigError
from rorqual.html.numbers import grouped, short, size
from rorqual.html.page import clean
from rorqual.planner.flops import train_flops_per_token
from rorqual.planner.inventory import Tensor, fp8_block_size, inventory, totals
from rorqual.planner.params import cache_values_per_token, count
from rorqual.presets import FP8_QUANTIZATION, member

_LAYOUTS = {"bf16": "BF16", "fp32": "F32", "fp8": "BF16"}
_SHOWN = 8
_PLAIN, _SCALES = ("F32", "BF16", "F16"), ("F32", "BF16", "F8_E8M0")  # dtypes that readers of the family accept
_MTP_COPIES = ("embed_tokens.weight", "shared_head.head.weight")  # a reader takes the main model's where they are left out
_FLOPS_LENGTH = 4096


def main(argv: list[str]) -> int:
    """Runs the verb; 0 when all that was asked for is there, 1 when a folder's tensors do not fit its configuration."""
    parser = argparse.ArgumentParser(prog="rorqual inspect", description="Show what a model folder, a configuration or a preset is.")
    parser.add_argument("source", nargs="?", help="model folder, run folder, or config.json")
    parser.add_argument("--preset", metavar="NAME", help="a configuration that the package knows, instead of a folder or file")
    parser.add_argument(
        "--layout", choices=sorted(_LAYOUTS), help="tensors and bytes as this layout would have them (default: the source's own)"
    )
    parser.add_argument("--verify", action="store_true", help="also read every byte: find values that are not numbers")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    args = parser.parse_args(argv)
    if args.verify and (args.preset or not Path(args.source or "").is_dir()):
        parser.error("--verify needs a folder")
    if (args.source is None) == (args.preset is None):
        parser.error("give a folder, a config.json, or --preset NAME (one of them)")
    report = describe_preset(args.preset, args.layout) if args.preset else describe_path(Path(args.source), args.layout)
    if args.verify:
        report["verified"] = _verified(_model_path(Path(args.source)))
    print(json.dumps(report, indent=2) if args.json else _text(report) + _verified_text(report.get("verified")))
    wrong = report.get("folder") and (report["folder"]["missing"] or report["folder"]["different"])
    return 1 if wrong or (report.get("verified") or {}).get("bad") else 0


def _verified(path: Path) -> dict[str, Any]:
    from rorqual.checkpoint.verify import verify
    from rorqual.cli.progress import bytes_bar

    with bytes_bar("reading") as progress:
        found = verify(path, progress)
    return {"tensors": found.tensors, "bytes": found.num_bytes, "seconds": found.seconds, "bad": found.bad}


def _verified_text(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    wrong = ", ".join(f"{clean(name)} ({count} values)" for name, count in list(found["bad"].items())[:_SHOWN])
    verdict = f"not numbers in {len(found['bad'])} tensors: {wrong}" if wrong else "every value is a number"
    return f"\nverified: {grouped(found['tensors'])} tensors, {size(found['bytes'])} read in {found['seconds']:.2f} s; {verdict}"


# ---------------------------------------------------------------------- what is shown


def describe_preset(name: str, layout: str | None = None) -> dict[str, Any]:
    """The figures of a preset, in the layout of its released files unless `layout` asks for another; what no source confirms is named."""
    one = member(name)
    unverified = {key: {"value": _plain(getattr(one.config, key)), "reason": reason} for key, reason in one.unverified.items()}
    figures = describe(one.released, layout)
    return {"source": f"preset {name}", "title": one.title, **figures, "licence": licence_of_preset(name), "unverified": unverified}


def describe_path(path: Path, layout: str | None = None) -> dict[str, Any]:
    """The figures of a folder or a config.json; for a folder with weights, also how they fit."""
    path = _model_path(path)
    config = ModelConfig.from_file(path)
    licence = licence_of_folder(path) if path.is_dir() else NOT_RECORDED
    if not path.is_dir() or not (any(path.glob("*.safetensors")) or (path / INDEX_NAME).exists()):
        return {"source": str(path), **describe(config, layout), "licence": licence}
    folder = open_folder(path)
    config = settle(config, {name: entry.shape for name, entry in folder.tensors.items()})
    config = _as_stored(config, folder)
    held = Counter(entry.dtype for entry in folder.tensors.values())
    if layout is None and config.quantization_config is None and held and held.most_common(1)[0][0] == "F32":
        layout = "fp32"
    return {"source": str(path), **describe(config, layout), "licence": licence, "folder": compare(config, folder)}


def _as_stored(config: ModelConfig, folder: ShardFolder) -> ModelConfig:
    """Quantised as the tensors are, whatever config.json says of it (field case F09, rows x and y); the folder's notices tell."""
    quantised = any(entry.dtype == "F8_E4M3" for entry in folder.tensors.values())
    if quantised == (config.quantization_config is not None) or not folder.tensors:
        return config
    if quantised:
        folder.notices.append("weights are FP8, config.json has no quantization_config: read with blocks of 128 x 128")
        return config.with_(quantization_config=FP8_QUANTIZATION)
    folder.notices.append("config.json has quantization_config, the weights are not quantised: read as they are")
    return config.with_(quantization_config=None)


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _model_path(path: Path) -> Path:
    """The folder or file to read: a run folder stands for the model that it exported."""
    exported = path / "hf"
    if (path / "metrics.jsonl").exists() and (path / "config.json").exists():
        if not (exported / "config.json").exists():
            raise ConfigError(f"{path} is a run that has exported no model yet; finish it, or write one with: rorqual export {path} OUT")
        return exported
    return path


def describe(config: ModelConfig, layout: str | None = None) -> dict[str, Any]:
    """Everything that follows from a configuration alone."""
    if layout is not None:
        config = config.with_(quantization_config=(config.quantization_config or FP8_QUANTIZATION) if layout == "fp8" else None)
    dtype = _LAYOUTS[layout or "bf16"]
    parameters, tensors = count(config), inventory(config, dtype)
    cache, (elements, size) = cache_values_per_token(config), totals(tensors)
    return {
        "model_type": config.model_type,
        "layout": _layout(config, dtype),
        "tensors": len(tensors),
        "elements": elements,
        "bytes": size,
        "parameters_total": parameters.total,
        "parameters_active": parameters.active,
        "parameters_active_without_embedding": parameters.active_without_embedding,
        "parameters_active_without_embedding_and_head": parameters.active_without_embedding_and_head,
        "parameters_mtp": parameters.mtp,
        "parameters_mtp_active": parameters.mtp_active,
        "conventions": dict(_CONVENTIONS),
        "cache_values_per_token": cache,
        "cache_bytes_per_token": {"bf16": 2 * cache, "fp32": 4 * cache},
        "train_flops_per_token": {"sequence_length": _FLOPS_LENGTH, "main": train_flops_per_token(config, _FLOPS_LENGTH),
                                  "with_mtp": train_flops_per_token(config, _FLOPS_LENGTH, mtp=True)},
        "shape": _shape(config),
    }  # fmt: skip


def _layout(config: ModelConfig, dtype: str) -> str:
    block = fp8_block_size(config)
    if block is None or config.quantization_config is None:
        return _WORDS[dtype]
    powers = ", powers of two (ue8m0)" if config.quantization_config.get("scale_fmt") == "ue8m0" else ""
    return f"FP8 E4M3 in blocks of {block[0]} x {block[1]} with FP32 scales{powers}"


_WORDS = {"BF16": "BF16, router biases in FP32", "F32": "FP32"}
_CONVENTIONS = {
    "parameters_total": "trunk, embedding, head, router biases; without MTP modules",
    "parameters_active": "what one token uses of the total, embedding and head included",
    "parameters_active_without_embedding": "without the input embedding, which is a look-up (the usual 'activated')",
    "parameters_active_without_embedding_and_head": "blocks and final norm alone",
    "parameters_mtp": "the MTP modules' own, without their copies of embedding and head",
    "parameters_mtp_active": "what one token uses of those",
    "elements": "everything in the files: MTP modules, their copies of embedding and head, FP8 scales",
    "bytes": "tensor data, without the files' headers",
    "cache_values_per_token": "(kv_lora_rank + qk_rope_head_dim) in each block of the trunk",
}


def _shape(config: ModelConfig) -> dict[str, Any]:
    experts = config.n_routed_experts
    return {
        "layers": config.num_hidden_layers, "dense_layers": sum(not config.is_moe(layer) for layer in range(config.num_hidden_layers)),
        "mtp_modules": config.num_nextn_predict_layers, "hidden_size": config.hidden_size, "heads": config.num_attention_heads,
        "q_lora_rank": config.q_lora_rank, "kv_lora_rank": config.kv_lora_rank, "vocab_size": config.vocab_size,
        "routed_experts": experts, "experts_per_token": config.num_experts_per_tok if experts else 0,
        "shared_experts": config.n_shared_experts if experts else 0, "context": config.max_position_embeddings,
    }  # fmt: skip


def compare(config: ModelConfig, folder: ShardFolder) -> dict[str, Any]:
    """A verified folder against the layout that its configuration asks for: names, shapes, and whether FP8 is where it should be."""
    expected = {tensor.name: tensor for tensor in inventory(config)}
    repeated = {HEAD} if config.tie_word_embeddings else set()
    found = {name if name.startswith(("model.", HEAD)) else f"model.{name}": entry for name, entry in folder.tensors.items()}
    modules = range(config.num_hidden_layers, config.num_blocks)
    absent = [f"model.layers.{layer}." for layer in modules if not any(name.startswith(f"model.layers.{layer}.") for name in found)]
    optional = (*absent, *(f"model.layers.{layer}.{copy}" for layer in modules for copy in _MTP_COPIES))
    notices = list(folder.notices)
    plain = [name for name, tensor in expected.items() if tensor.dtype == "F8_E4M3" and name in found and found[name].dtype in _PLAIN and name + SCALE not in found]  # fmt: skip
    for name in plain:
        expected[name] = expected[name]._replace(dtype=found[name].dtype)
        del expected[name + SCALE]
    if plain:
        notices.append(f"{grouped(len(plain))} weights are plain among FP8 ones: read as they are")
    different = [
        line for name, entry in found.items() if name in expected and (line := _difference(expected[name], entry.dtype, entry.shape))
    ]
    stray = [name for name in found if name.endswith(SCALE) and name not in expected and name.removesuffix(SCALE) in expected]
    different += [f"{name}: scales, and no FP8 weight beside them" for name in stray]
    return {
        "files": len(folder.files),
        "tensors": len(found),
        "bytes": sum(entry.end - entry.begin for entry in found.values()),
        "dtypes": dict(Counter(entry.dtype for entry in found.values()).most_common()),
        "missing": [name for name in expected if name not in found and not name.startswith(optional)],
        "absent_mtp_modules": len(absent),
        "extra": [name for name in found if name not in expected and name not in repeated and name not in stray],
        "different": different,
        "notices": notices,
    }


def _difference(expected: Tensor, dtype: str, shape: tuple[int, ...]) -> str | None:
    if expected.shape != shape:
        return f"{expected.name}: shape {list(shape)}, the configuration makes it {list(expected.shape)}"
    if (expected.dtype == "F8_E4M3") != (dtype == "F8_E4M3"):
        return f"{expected.name}: dtype {dtype}, the configuration makes it {expected.dtype}"
    allowed = _SCALES if expected.name.endswith(SCALE) else (*_PLAIN, "F8_E4M3")
    return None if dtype in allowed else f"{expected.name}: dtype {dtype}, readers take {', '.join(allowed)}"


# ---------------------------------------------------------------------- text


def _text(report: Mapping[str, Any]) -> str:
    shape, cache = report["shape"], report["cache_bytes_per_token"]
    experts = f"{shape['experts_per_token']} of {shape['routed_experts']} routed experts and {shape['shared_experts']} shared per token" if shape["routed_experts"] else "no routed experts"  # fmt: skip
    modules = f" + {shape['mtp_modules']} MTP" if shape["mtp_modules"] else ""
    title = f"{report['title']}: {report['model_type']}" if "title" in report else report["model_type"]
    gflop = report["train_flops_per_token"]
    query = "none" if shape["q_lora_rank"] is None else shape["q_lora_rank"]
    lines = [
        clean(str(report["source"])),
        "",
        _line("model", f"{title}, {shape['layers']} layers{modules} ({shape['dense_layers']} dense), width {shape['hidden_size']}"),
        _line("", f"{shape['heads']} heads, query rank {query}, latent {shape['kv_lora_rank']}; {experts}"),
        _line("", f"vocabulary {grouped(shape['vocab_size'])}, context {grouped(shape['context'])}"),
        "",
    ]
    counted = [("total", "parameters_total"), ("active", "parameters_active"), ("", "parameters_active_without_embedding"),
               ("", "parameters_active_without_embedding_and_head")]  # fmt: skip
    if modules:
        counted += [("MTP", "parameters_mtp"), ("", "parameters_mtp_active")]
    lines += [_line(label, f"{grouped(report[key]):>20}  {short(report[key]):>6}", _CONVENTIONS[key]) for label, key in counted]
    lines += [
        "",
        _line("layout", report["layout"]),
        _line("tensors", f"{grouped(report['tensors']):>20}"),
        _line("elements", f"{grouped(report['elements']):>20}  {short(report['elements']):>6}", _CONVENTIONS["elements"]),
        _line("bytes", f"{grouped(report['bytes']):>20}  {size(report['bytes'])}", _CONVENTIONS["bytes"]),
        "",
        _line(
            "cache",
            f"{grouped(cache['bf16'])} bytes per token in BF16, {grouped(cache['fp32'])} in FP32",
            _CONVENTIONS["cache_values_per_token"],
        ),
        _line(
            "training",
            f"{_gflop(gflop['main'])} per token at {gflop['sequence_length']} tokens"
            + (f", {_gflop(gflop['with_mtp'])} with MTP" if modules else ""),
        ),
    ]
    lines.append(_line("licence", clean(report["licence"])))
    for index, (key, one) in enumerate(report.get("unverified", {}).items()):
        value = "" if isinstance(one["value"], dict) else f" {one['value']}"
        lines.append(_line("" if index else "unverified", f"{key}{value}: {one['reason']}"))
    return "\n".join(lines + _folder_lines(report.get("folder")))


def _line(label: str, value: str, note: str = "") -> str:
    return f"{label:<12}{value}{f'   {note}' if note else ''}".rstrip()


def _folder_lines(folder: Mapping[str, Any] | None) -> list[str]:
    if folder is None:
        return []
    dtypes = ", ".join(f"{number} {dtype}" for dtype, number in folder["dtypes"].items())
    lines = [
        "",
        _line("files", f"{folder['files']} with {grouped(folder['tensors'])} tensors, {grouped(folder['bytes'])} bytes ({dtypes})"),
    ]
    if folder["absent_mtp_modules"]:
        absent = folder["absent_mtp_modules"]
        lines.append(_line("MTP", f"{absent} modules of the configuration have no tensors here; the model loads without"))
    for key in ("missing", "extra", "different"):
        names = [clean(name) for name in folder[key]]
        lines.append(_line(key, "none" if not names else grouped(len(names))))
        lines += [_line("", name) for name in names[:_SHOWN]]
        if len(names) > _SHOWN:
            lines.append(_line("", f"and {grouped(len(names) - _SHOWN)} more (--json lists them)"))
    return lines + [_line("notice", clean(text)) for text in folder["notices"]]


def _gflop(value: float) -> str:
    return f"{value / 1e9:.2f} GFLOP" if value >= 1e9 else f"{value / 1e6:.2f} MFLOP"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
