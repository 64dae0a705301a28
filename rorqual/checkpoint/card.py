"""The README of a written folder, and under what terms its weights stand (specification section 10.6). No torch.

Terms are facts about a source: they come from the folder's own files, for presets from what was published, else "not recorded".
A licence that asks for its terms to be passed on is carried along with every conversion.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rorqual.config import ModelConfig
from rorqual.html.numbers import short, size
from rorqual.planner.params import count

LICENCE_FILES: Final = re.compile(r"(LICENSE|LICENCE|NOTICE|COPYING)[\w.-]*", re.IGNORECASE)
NOT_RECORDED: Final = "not recorded"
DEEPSEEK: Final = "DeepSeek Model Licence v1.0"
MIT: Final = "MIT"

DEEPSEEK_TERMS: Final = (
    "The weights come from a model under the DeepSeek Model Licence v1.0 of 23 October 2023. What it asks, in short (the licence text decides):",
    "- Use, also commercial, is free of charge; the patent licence ends for whoever sues over the model.",
    "- Whoever passes the weights on, or offers them as a service, passes the use restrictions on as enforceable terms, gives a copy of the licence, marks changed files and keeps the notices.",
    "- Derivatives inherit the restrictions; models trained on its outputs or by distillation count among them.",
    "- Not allowed: breaking the law or others' rights; military use; exploiting or harming minors; false information meant to harm; content that applicable rules forbid; "
    "using personal data without right; defamation or harassment; fully automated decisions that affect rights or create obligations; discrimination by behaviour, "
    "personality or protected characteristics; exploiting the weakness of a group.",
    "- DeepSeek claims no rights in outputs. The weights come as they are, without warranty; the law of the People's Republic of China applies.",
)  # fmt: skip
"""The licence's duties in our own words; the licence file itself is copied where the source has it."""

_PRESETS: Final = {"v3_671b": DEEPSEEK, "r1": MIT}


@dataclass(frozen=True)
class Licence:
    """`name` for one line, `terms` where they must be carried along, `files` to copy."""

    name: str
    terms: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def licence_of_preset(name: str) -> str:
    """Licence of a published member's weights, as far as it is on record."""
    return _PRESETS.get(name, NOT_RECORDED)


def licence_of_folder(path: Path) -> str:
    """One line about the terms that a folder's own files state."""
    return read_licence(path).name


def read_licence(path: Path) -> Licence:
    """Terms by the folder's files: licence texts first, then the `license:` field of its README."""
    files = tuple(sorted(file for file in path.iterdir() if file.is_file() and LICENCE_FILES.fullmatch(file.name))) if path.is_dir() else ()
    texts = [_start(file) for file in files]
    readme = _start(path / "README.md")
    field = re.search(r"^license(?:_name)?:\s*([\w.-]+)", readme, re.MULTILINE)
    for text in [*texts, readme]:
        if re.search(r"DEEPSEEK\s+(MODEL\s+)?LICEN[SC]E", text, re.IGNORECASE):
            return Licence(DEEPSEEK, DEEPSEEK_TERMS, files)
    for text in texts:
        if re.search(r"\bmodified\s+MIT\b", text, re.IGNORECASE):
            return Licence("Modified MIT", (), files)
        if re.search(r"\bMIT Licen[sc]e\b", text, re.IGNORECASE):
            return Licence(MIT, (), files)
    if files:
        return Licence(f"see {', '.join(file.name for file in files)}", (), files)
    return Licence(field[1] if field else NOT_RECORDED)


def _start(path: Path) -> str:
    """The beginning of a text file; nothing where there is none."""
    try:
        with path.open("rb") as file:
            return file.read(65536).decode("utf-8", "replace")
    except OSError:
        return ""


def model_card(config: ModelConfig, *, title: str, origin: str, dtype: str, num_bytes: int, licence: Licence, version: str) -> str:
    """README.md of a written folder: what it is, where it is from, how to run it, under what terms."""
    parameters = count(config)
    modules = config.num_nextn_predict_layers
    mtp = (
        f", and {modules} MTP module{'s' * (modules != 1)} of {short(parameters.mtp)} for speculative decoding"
        if modules
        else ", without MTP modules"
    )
    experts = (
        f"{config.n_routed_experts} routed experts, {config.num_experts_per_tok} a token"
        if config.n_routed_experts
        else "no routed experts"
    )
    vllm = ' --speculative-config \'{"method": "mtp", "num_speculative_tokens": 1}\'' if modules else ""
    lines = [
        "---", f"license: {'mit' if licence.name == MIT else 'other'}", "---", "",
        f"# {title}", "",
        f"A model of the DeepSeek-V3 family: {short(parameters.total)} parameters, {short(parameters.active_without_embedding)} active per token{mtp}; "
        f"{config.num_hidden_layers} layers, {experts}. Weights in {dtype}, {size(num_bytes)}.", "",
        f"Written by Rorqual {version} from `{origin}`.", "",
        "## Run it", "", "```", 'rorqual generate . "..."', f"vllm serve .{vllm}", "```", "",
        "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer",
        'model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")', "```", "",
        "## Licence", "", *(licence.terms or (f"Terms of the source: {licence.name}.",)),
    ]  # fmt: skip
    if licence.files:
        lines += ["", "Texts that came with it: " + ", ".join(f"`{file.name}`" for file in licence.files) + "."]
    return "\n".join(lines) + "\n"
