"""`tiktoken.model` files (Moonlight, Kimi-K2) as a `tokenizers` vocabulary, without the folder's Python code. Report section 4.1.

A line is a token's bytes in base64 and its rank, which is its id. Byte-pair encoding by ranks merges whatever neighbours spell a token,
lowest rank first, so every way to cut a token in two known ones is a merge of that rank; a piece that is a token as a whole is taken
as it is. The split pattern stands in the members' Python files, which are never run, so it is here; special tokens come from
tokenizer_config.json, ids after the base vocabulary that it does not name are reserved.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rorqual.errors import TokenizerError

FILE: Final = "tiktoken.model"
RESERVED: Final = 256
"""Ids after the base vocabulary of Moonlight and K2."""
MOST_BYTES: Final = 64_000_000

_CAPITAL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_SMALL = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SPLIT: Final = "|".join((
    r"[\p{Han}]+", rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITAL}*{_SMALL}+{_ENDING}", rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITAL}+{_SMALL}*{_ENDING}", r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
))  # fmt: skip
"""The split pattern that Moonlight and K2 publish."""


def read_ranks(path: Path) -> dict[bytes, int]:
    """{token: rank}; TokenizerError, with the line, for anything that is not a whole vocabulary of ranks 0 to n - 1."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise TokenizerError(f"{path} is {path.stat().st_size} bytes; a tiktoken.model is at most {MOST_BYTES}")
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror or error}") from None
    table: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = line.split()
        try:
            token, rank = base64.b64decode(parts[0], validate=True), int(parts[1])
            if len(parts) != 2 or not token or token in table:
                raise ValueError
        except (ValueError, IndexError, binascii.Error):
            raise TokenizerError(f"{path}, line {number}: expected a new token in base64 and its rank, got {line[:80]!r}") from None
        table[token] = rank
    if sorted(table.values()) != list(range(len(table))):
        raise TokenizerError(f"{path}: ranks must be 0 to {len(table) - 1}, each once")
    lacking = [byte for byte in range(256) if bytes([byte]) not in table]
    if lacking:
        raise TokenizerError(f"{path}: {len(lacking)} of the 256 single bytes are missing, the first is {lacking[0]}")
    return table


def special_tokens(settings: Mapping[str, Any], base: int) -> dict[int, str]:
    """{id: token} after a base vocabulary of `base` ids: as tokenizer_config.json names them, the rest reserved."""
    named: dict[int, str] = {}
    for key, value in (settings.get("added_tokens_decoder") or {}).items():
        text = value.get("content") if isinstance(value, Mapping) else value
        if not str(key).isdecimal() or not isinstance(text, str) or int(key) < base:
            raise TokenizerError(f"added_tokens_decoder has {key!r}: {value!r}; ids from {base} up with their content are expected")
        named[int(key)] = text
    last = max([base + RESERVED - 1, *named])
    return {number: named.get(number, f"<|reserved_token_{number}|>") for number in range(base, last + 1)}


def tokenizer_json(folder: Path, alphabet: list[str]) -> tuple[str, dict[str, Any]]:
    """(text of an equal tokenizer.json, fields of tokenizer_config.json) of a folder with a tiktoken.model.

    `alphabet` is the printable character for each byte of a byte-level vocabulary.
    """
    settings: dict[str, Any] = {}
    side = folder / "tokenizer_config.json"
    if side.is_file():
        try:
            settings = json.loads(side.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TokenizerError(f"cannot read {side} ({error}); it names the special tokens of a {FILE}") from None
        if not isinstance(settings, dict):
            raise TokenizerError(f"{side} holds a {type(settings).__name__}, not an object")
    table = read_ranks(folder / FILE)

    def spell(token: bytes) -> str:
        return "".join(alphabet[byte] for byte in token)

    merges = []
    for token, _ in sorted(table.items(), key=lambda item: item[1]):
        for cut in range(len(token) - 1, 0, -1):
            if token[:cut] in table and token[cut:] in table:
                merges.append([spell(token[:cut]), spell(token[cut:])])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": number, "content": text, **flags} for number, text in special_tokens(settings, len(table)).items()]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}, byte_level]},
        "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                  "byte_fallback": False, "ignore_merges": True, "vocab": {spell(token): rank for token, rank in table.items()}, "merges": merges},
    }  # fmt: skip
    return json.dumps(content, ensure_ascii=False), settings
