"""What the outside has to know about the model behind an engine."""

from __future__ import annotations

from dataclasses import dataclass

from rorqual.tokenizer.bpe import Tokenizer


@dataclass(frozen=True)
class Served:
    """`stop_ids` end an answer; `adds_bos` says that plain prompts begin with BOS; `style` is the chat style (tokenizer.templates.style_of)."""

    name: str
    tokenizer: Tokenizer
    max_model_len: int
    vocab_size: int
    stop_ids: frozenset[int]
    adds_bos: bool = False
    style: str = "v3"
    has_mtp: bool = False
