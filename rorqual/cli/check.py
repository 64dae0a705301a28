"""Judges what `export` wrote by a peer that is installed: transformers for folders, llama.cpp for GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rorqual.errors import CheckpointError, MissingExtraError

if TYPE_CHECKING:
    from rorqual.checkpoint.source import Source

TOLERANCE = 1e-4
LENGTH = 16


def check_hf(folder: Path) -> str:
    """Logits of transformers' class and of ours on one prompt, both from the folder in FP32; CheckpointError where they differ by more than 1e-4."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM
    except ImportError:
        raise MissingExtraError("--check hf", "transformers", "hf") from None
    import torch

    from rorqual.checkpoint import hf

    ours, report = hf.load(folder)
    if any(name.endswith("_scale_inv") for name in report.loaded):
        raise CheckpointError(
            f"--check hf needs plain weights: transformers reads FP8 folders on a GPU only; check a copy: rorqual export {folder} OUT --to bf16"
        )
    ids = torch.arange(3, 3 + LENGTH).remainder(ours.config.vocab_size).unsqueeze(0)
    if ours.config.model_type == "kimi_k2":  # V3's class under a name that transformers leaves to remote code
        raw = {key: value for key, value in json.loads((folder / "config.json").read_text()).items() if key != "model_type"}
        theirs = DeepseekV3ForCausalLM.from_pretrained(folder, config=DeepseekV3Config(**raw), dtype=torch.float32).eval()
    else:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        theirs = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32, trust_remote_code=False).eval()
    with torch.no_grad():
        difference = float((ours.logits(ours(ids).hidden) - theirs(input_ids=ids).logits).abs().max())
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"{folder}: logits differ from transformers' by {difference:.2g}, more than {TOLERANCE:g}; please report this with its config.json"
        )
    return f"check: logits within {difference:.2g} of transformers' on {LENGTH} tokens"


def check_gguf(path: Path, source: Source, tokenizer: Path | None) -> str:
    """Greedy tokens of llama.cpp and of ours on one prompt; CheckpointError where they differ."""
    from rorqual.checkpoint import gguf_check

    return gguf_check.check(path, source, tokenizer)
