"""The fast encoder gives the library's ids for every text, however it cuts it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from rorqual.errors import TokenizerError
from rorqual.tokenizer import bpe, plain, special
from rorqual.tokenizer.plain import PlainEncoder, pieces
from tests.tokenizer.samples import LINES, tokenizer

ENCODER = PlainEncoder(tokenizer())
LIBRARY = tokenizers.Tokenizer.from_str(json.dumps(tokenizer().content() | {"added_tokens": []}))

ASCII = st.text("abcXYZ019 \t\n\r\x0b\x0c.,:;()[]{}_'\"<>|=+-\\`~@")
FRAGMENTS = st.sampled_from([*LINES, *bpe.PROBES, special.EOS, "<think>", "\u3002", "\uff0c", "\x1c", "\x85", "\u00a0", "\u2028", " ", "\n", "\u0e01\u0e34 ", "\u00bd,", "\ua7dc ",
                             "\r\n", "  \n\n", "\u0301", "\u00e9", "\u6c42", "\u3042", "1", "\u0661", "\u00b2", "x", "_", "\u20ac", "\ufeff", "\U0001f988"])  # fmt: skip
MIXED = st.lists(FRAGMENTS | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=12).map("".join)


def _ids(packed: bytes) -> list[int]:
    return np.frombuffer(packed, dtype=ENCODER.dtype).tolist()


def _library(text: str) -> list[int]:
    return LIBRARY.encode(text, add_special_tokens=False).ids


@given(ASCII)
@settings(max_examples=300)
def test_plain_text(text: str) -> None:
    assert _ids(ENCODER.encode(text)) == _library(text)


@given(MIXED, st.integers(1, 40))
@settings(max_examples=300)
def test_any_text_in_pieces_of_any_size(text: str, size: int) -> None:
    assert "".join(pieces(text, size)) == text
    assert _ids(ENCODER.encode(text)) == _ids(ENCODER.encode(text, size)) == _library(text)


@given(st.text("ab.=\u00e9\u6c42", min_size=1, max_size=200), st.integers(1, 40))
def test_a_word_in_windows_is_the_word(text: str, window: int) -> None:
    word = "".join(bpe.byte_alphabet()[byte] for byte in text.encode())
    assert _ids(ENCODER.word(word, window)) == [token.id for token in LIBRARY.model.tokenize(word)]


@pytest.mark.parametrize("unit", ["=", "ab", "return", "\u6c42\u7d22", "\u2014", "a\u0301", "\u00e9", "\u0434\u0430", "\ud55c", "\u3042"])
def test_a_document_of_one_endless_word(unit: str) -> None:
    text = unit * (3000 // len(unit))
    assert _ids(ENCODER.encode(text, 16)) == _library(text)


def test_special_token_strings_in_a_document_stay_text() -> None:
    text = f"a{special.EOS}b<think>"
    ids = _ids(ENCODER.encode(text))
    assert ids == _library(text) and not {0, 1, 2} & set(ids) and max(ids) < tokenizer().vocab_size - len(special.TRAILING)
    assert tokenizer().decode(ids) == text and 1 in tokenizer().encode(text)


def test_ids_do_not_depend_on_what_was_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "_CACHED_WORDS", 3)
    encoder = PlainEncoder(tokenizer())
    assert [_ids(encoder.encode(text)) for text in LINES * 2] == [_library(text) for text in LINES * 2]


def test_another_pipeline_is_left_to_the_library() -> None:
    content = tokenizer().content()
    content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    own = bpe.Tokenizer(json.dumps(content))
    encoder = PlainEncoder(own)
    assert ENCODER.is_deepseek and not encoder.is_deepseek
    assert [_ids(encoder.encode(line, 8)) for line in LINES] == [own.encode(line) for line in LINES]
    for changes in ({"dropout": 0.1}, {"end_of_word_suffix": "w"}):
        other = tokenizer().content()
        other["model"] |= changes
        assert not PlainEncoder(_untested(other)).is_deepseek


def _untested(content: dict) -> bpe.Tokenizer:  # type: ignore[type-arg]
    own = bpe.Tokenizer.__new__(bpe.Tokenizer)
    own._content, own._inner, own._settings = content, tokenizers.Tokenizer.from_str(json.dumps(content)), {}
    return own


@pytest.mark.parametrize(("largest", "dtype"), [(65535, "<u2"), (65536, "<u4")])
def test_the_type_holds_every_id(largest: int, dtype: str) -> None:
    content = tokenizer().content()
    content["model"]["vocab"]["\u6c42"] = largest
    own = bpe.Tokenizer(json.dumps(content))
    assert own.vocab_size == largest + 1 and PlainEncoder.dtype_of(own) == np.dtype(dtype)


def test_a_vocabulary_with_holes_is_named() -> None:
    with pytest.raises(TokenizerError, match="token id 60000 has no text"):
        ENCODER._text_of(60000)


@pytest.mark.peer
def test_the_published_vocabulary() -> None:
    own = bpe.official()
    encoder = PlainEncoder(own)
    library = tokenizers.Tokenizer.from_str(json.dumps(own.content() | {"added_tokens": []}))
    texts = [Path(module.__file__ or "").read_text(encoding="utf-8") for module in (json, bpe, plain, special)]
    text = "".join(texts) + "\u6df1\u5ea6\u6c42\u7d22\u3002" * 30
    assert encoder.dtype == np.dtype("<u4") and encoder.is_deepseek
    assert np.frombuffer(encoder.encode(text, 512), dtype="<u4").tolist() == library.encode(text, add_special_tokens=False).ids
