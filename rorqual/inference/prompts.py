"""Where a plain prompt begins and an answer ends, as a model folder's own files say it. No torch.

A model that was trained with BOS before every text needs it before a prompt, once; of several end tokens (generation_config.json may
list them) each ends an answer.
"""

from __future__ import annotations

import json
from pathlib import Path

from rorqual.errors import DataError
from rorqual.tokenizer.bpe import Tokenizer

NOT_UNICODE = "the prompt is not valid Unicode text (bytes that are not UTF-8, or lone surrogates); correct its encoding"


def prompt_ids(tokenizer: Tokenizer, prompt: str, adds_bos: bool, eos_id: int) -> list[int]:
    """Ids of the prompt; an empty one becomes the start of a document: BOS where the model was trained with it, else the end token.

    DataError for text with half of a surrogate pair.
    """
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise DataError(NOT_UNICODE)
    ids = tokenizer.encode(prompt)
    if adds_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        return [tokenizer.bos_id, *ids]
    return ids or [eos_id]


def end_ids(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """End tokens beside the configuration's: generation_config.json may list several, and the tokenizer names its own."""
    named = _read(folder / "generation_config.json").get("eos_token_id")
    listed = named if isinstance(named, list) else [named]
    return tuple(sorted({number for number in (*listed, tokenizer.eos_id) if type(number) is int}))


def _read(path: Path) -> dict[str, object]:
    """The object of a small JSON file; empty where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
