"""Splits a share of the tokens that join punctuation and line breaks, against token boundary bias. Report section 4.1.

A prompt that ends in punctuation without a line break meets a model that has seen the joined token almost only; so in training
documents a share of them (the report gives no figure) becomes the tokens of the punctuation followed by those of the break.
Which ones is a function of the document's hash and the place, so a build is reproducible. Validation keeps canonical tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rorqual.data import counters
from rorqual.tokenizer.bpe import Tokenizer, byte_alphabet
from rorqual.tokenizer.plain import PlainEncoder

_STEP = np.uint64(0xD1342543DE82EF95)


class NewlineSplitter:
    """Splits at `rate` in batches of documents."""

    def __init__(self, tokenizer: Tokenizer, encoder: PlainEncoder, rate: float, seed: int) -> None:
        self.rate = rate
        self._key = counters.key("punctuation newline", seed)
        alphabet = byte_alphabet()
        table: dict[int, NDArray[np.generic]] = {}
        for token in range(tokenizer.vocab_size):
            try:
                raw = tokenizer.token_bytes(token)
            except ValueError:
                continue  # ids may have holes
            mark = raw.rstrip(b"\r\n")
            if len(mark) < len(raw) and mark.strip():
                halves = ("".join(alphabet[byte] for byte in half) for half in (mark, raw[len(mark) :]))
                table[token] = np.frombuffer(b"".join(encoder.word(half) for half in halves), dtype=encoder.dtype)
        self._extra = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        self._parts = np.zeros((tokenizer.vocab_size, max(map(len, table.values()), default=1)), dtype=encoder.dtype)
        for token, parts in table.items():
            self._extra[token] = len(parts) - 1
            self._parts[token, : len(parts)] = parts

    def __call__(
        self, tokens: NDArray[np.generic], lengths: NDArray[np.int64], hashes: NDArray[np.uint64]
    ) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
        """Documents one after the other, their lengths and hashes, to the same with a share of the joined tokens split."""
        places = np.flatnonzero(self._extra[tokens])
        ends = np.cumsum(lengths)
        document = np.searchsorted(ends, places, side="right")
        inside = (places - (ends - lengths)[document]).astype(np.uint64)
        with np.errstate(over="ignore"):
            chosen = counters.chosen(self._key, hashes[document] ^ (inside * _STEP), self.rate)
        places, document = places[chosen], document[chosen]
        if not len(places):
            return tokens, lengths
        extra = self._extra[tokens[places]]
        times = np.ones(len(tokens), dtype=np.int64)
        times[places] += extra
        result = np.repeat(tokens, times)
        first = places + np.cumsum(extra) - extra
        originals = tokens[places]
        for column in range(self._parts.shape[1]):
            has = extra >= column
            result[first[has] + column] = self._parts[originals[has], column]
        return result, lengths + np.bincount(document, weights=extra, minlength=len(lengths)).astype(np.int64)
