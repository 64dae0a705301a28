"""A tiny model folder that speaks DeepSeek's chat, and a file of conversations for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rorqual.checkpoint import hf
from rorqual.model.transformer import CausalLM
from rorqual.tokenizer import bpe
from tests.tiny import t0

TEXTS = ["the whale dives, the whale sings; one and two are three; 1 + 1 = 2\n"] * 20


def write_model(root: Path, **changes: Any) -> Path:
    """T0 with random weights, a vocabulary of 320 ids and no chat template."""
    tokenizer = bpe.train(TEXTS, 320, root / "tokenizer")
    config = t0(
        **{"vocab_size": 320, "initializer_range": 0.05, "bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, **changes}
    )
    model = CausalLM(config)
    model.init_weights(1)
    return hf.export(model, root / "tokenizer", root / "model")


def talk(number: int, reasoning: bool = False) -> dict[str, Any]:
    """A short conversation; its length changes with the number."""
    answer: dict[str, Any] = {"role": "assistant", "content": f"{number} " + "sings " * (number % 7)}
    if reasoning:
        answer["reasoning_content"] = f"one and {number}"
    return {"messages": [{"role": "user", "content": f"{number}?"}, answer]}


def write_talks(file: Path, count: int = 24) -> Path:
    file.write_text("".join(json.dumps(talk(number, number % 3 == 0)) + "\n" for number in range(count)), encoding="utf-8")
    return file
