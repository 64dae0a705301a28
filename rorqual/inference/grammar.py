"""Structured output: JSON schema, regex or Lark grammar as a mask over tokens, through `llguidance` (extra `serve`).

A grammar sees the answer's tokens in order. Drafts are validated before they are run and a wrong guess is rolled back, so that
speculation changes nothing. With `start_after` it begins behind that token (`</think>`): reasoning is free, the answer is not.
Optional white space is left out of JSON: a weak model writes it for ever.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from rorqual.errors import ConfigError, MissingExtraError, TokenizerError
from rorqual.inference.params import StructuredOutputs

if TYPE_CHECKING:
    from rorqual.tokenizer.bpe import Tokenizer

_JSON_DEFAULTS: dict[str, Any] = {"whitespace_flexible": False}


class _Vocabulary:
    """What llguidance wants to know about a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, eos_id: int) -> None:
        self.eos_token_id, self.bos_token_id = eos_id, tokenizer.bos_id
        self.tokens = [_bytes(tokenizer, number) for number in range(tokenizer.vocab_size)]
        self.special_token_ids = [token["id"] for token in tokenizer.content().get("added_tokens", [])]
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))


def _bytes(tokenizer: Tokenizer, number: int) -> bytes:
    try:
        return tokenizer.token_bytes(number)
    except TokenizerError:  # a gap in the ids
        return b""


class GrammarCompiler:
    """Makes grammars for one tokenizer; `eos_ids` end an answer that is complete. MissingExtraError without llguidance."""

    def __init__(self, tokenizer: Tokenizer, eos_ids: Sequence[int]) -> None:
        try:
            import llguidance
        except ImportError:
            raise MissingExtraError("structured output", "llguidance", "serve") from None
        self._library = llguidance
        wrapper = llguidance.TokenizerWrapper(_Vocabulary(tokenizer, eos_ids[0]))
        self._tokenizer = llguidance.LLTokenizer(wrapper, n_vocab=tokenizer.vocab_size, eos_token=list(eos_ids))
        self._vocab_size, self._eos_ids = tokenizer.vocab_size, frozenset(eos_ids)

    def compile(self, wanted: StructuredOutputs, start_after: int | None = None) -> Grammar:
        """The grammar of one answer; ConfigError with the library's reason for a schema, regex or grammar that it cannot use."""
        matcher_class: Any = self._library.LLMatcher
        try:
            if wanted.json is not None or wanted.json_object:
                schema = wanted.json if wanted.json is not None else {"type": "object"}
                text = matcher_class.grammar_from_json_schema(
                    schema if isinstance(schema, str) else json.dumps(dict(schema)), defaults=_JSON_DEFAULTS
                )
            elif wanted.regex is not None:
                text = matcher_class.grammar_from_regex(wanted.regex)
            elif wanted.choice is not None:
                text = matcher_class.grammar_from_lark("start: " + " | ".join(json.dumps(option) for option in wanted.choice))
            else:
                text = matcher_class.grammar_from_lark(wanted.grammar)
        except ValueError as error:
            raise ConfigError(f"structured outputs: {error}") from None
        matcher = matcher_class(self._tokenizer, text, log_level=0)
        if matcher.is_error():
            raise ConfigError(f"structured outputs: {matcher.get_error().strip()}")
        return Grammar(matcher, self._vocab_size, self._eos_ids, start_after)


class Grammar:
    """The state of one answer. `vocab_size` is the width of `mask`."""

    def __init__(self, matcher: Any, vocab_size: int, eos_ids: frozenset[int], start_after: int | None = None) -> None:
        self._matcher, self._vocab_size, self._eos_ids, self._start_after = matcher, vocab_size, eos_ids, start_after
        self._ended = False
        self._accepted = 0
        self._begins = 0 if start_after is None else None  # accepted tokens before the grammar's first

    @property
    def active(self) -> bool:
        """Whether the grammar has begun."""
        return self._begins is not None

    @property
    def done(self) -> bool:
        """Whether only an end token can follow, or has."""
        return self.active and (self._ended or bool(self._matcher.is_stopped()))

    def mask(self) -> Bool[Tensor, " v"] | None:
        """True where the next token is allowed; None before the grammar has begun."""
        if not self.active:
            return None
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(bool))

    def accept(self, token: int) -> bool:
        """Takes the next token of the answer; False, and no change, if the grammar does not allow it."""
        if self._ended:
            return False
        if self.active and token in self._eos_ids:
            if not self._matcher.is_accepting():
                return False
            self._ended = True
        elif self.active:
            if self._matcher.validate_tokens([token]) != 1 or not self._matcher.consume_token(token):
                return False
        elif token == self._start_after:
            self._begins = self._accepted + 1
        self._accepted += 1
        return True

    def validate(self, tokens: Sequence[int]) -> int:
        """How many of the tokens could be accepted one after the other; changes nothing."""
        count = 0
        while count < len(tokens) and self.accept(tokens[count]):
            count += 1
        self.rollback(count)
        return count

    def rollback(self, count: int) -> None:
        """Forgets the last `count` accepted tokens."""
        left = self._accepted - count
        if count and self._begins is not None:
            taken = min(count, self._accepted - self._begins) - self._ended
            self._ended = False
            if taken and not self._matcher.rollback(taken):
                raise ConfigError(f"the grammar could not be rolled back by {taken} tokens: {self._matcher.get_error().strip()}")
            if self._start_after is not None and left < self._begins:
                self._begins = None
        self._accepted = left
