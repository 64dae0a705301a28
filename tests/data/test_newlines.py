"""A share of punctuation-newline tokens is split: same bytes, each document on its own, others untouched."""

from __future__ import annotations

import functools
import tempfile

import numpy as np
import pytest

from rorqual.data.newlines import NewlineSplitter
from rorqual.tokenizer import bpe
from rorqual.tokenizer.plain import PlainEncoder

DOCUMENTS = ["f(x);\ng(y);\n\nh:\n", "no breaks; here", "a);\n" * 200, "\n\n\n", "g(y);\n"]


@functools.cache
def _tools() -> tuple[bpe.Tokenizer, PlainEncoder]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = bpe.train(["f(x);\ng(y);\n\nh:\n a);\n" * 50], 320, folder)
    return tokenizer, PlainEncoder(tokenizer)


def _split(texts: list[str], rate: float, seed: int = 0) -> list[list[int]]:
    tokenizer, encoder = _tools()
    parts = [np.frombuffer(encoder.encode(text), dtype=encoder.dtype) for text in texts]
    hashes = np.array([hash(len(text)) * 7919 + 13 for text in texts], dtype=np.uint64)
    tokens, lengths = NewlineSplitter(tokenizer, encoder, rate, seed)(
        np.concatenate(parts), np.array([len(part) for part in parts]), hashes
    )
    assert lengths.sum() == len(tokens) and tokens.dtype == encoder.dtype
    return [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])]


def _joined(ids: list[int]) -> int:
    tokenizer, _ = _tools()
    return sum(raw.endswith(b"\n") and bool(raw.strip()) for raw in map(tokenizer.token_bytes, ids))


def test_the_vocabulary_has_joined_tokens() -> None:
    assert [_joined(ids) for ids in _split(DOCUMENTS, 0.0)] == [3, 0, 200, 0, 1]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_text_is_the_same_and_the_share_is_the_rate(rate: float) -> None:
    tokenizer, encoder = _tools()
    found = _split(DOCUMENTS, rate)
    assert [tokenizer.decode(ids) for ids in found] == DOCUMENTS
    assert (200 - _joined(found[2])) / 200 == pytest.approx(rate, abs=0.08 if 0 < rate < 1 else 0)
    assert found[1] == np.frombuffer(encoder.encode(DOCUMENTS[1]), dtype=encoder.dtype).tolist() and found[3] == _split(["\n\n\n"], 0.0)[0]


def test_documents_do_not_depend_on_their_batch() -> None:
    assert _split(DOCUMENTS, 0.5) == [_split([text], 0.5)[0] for text in DOCUMENTS]
    assert _split(DOCUMENTS[::-1], 0.5) == _split(DOCUMENTS, 0.5)[::-1]


def test_another_seed_splits_other_places() -> None:
    assert _split(DOCUMENTS, 0.5, seed=1) != _split(DOCUMENTS, 0.5) == _split(DOCUMENTS, 0.5)


def test_halves_are_the_tokens_of_each_half() -> None:
    _, encoder = _tools()
    (ids,) = _split(["g(y);\n"], 1.0)
    whole = encoder.encode("g(y);") + encoder.encode("\n")
    assert ids == np.frombuffer(whole, dtype=encoder.dtype).tolist() and _joined(ids) == 0
