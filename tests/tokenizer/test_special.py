"""Special tokens and the pre-tokeniser are spelled as the published file spells them."""

from __future__ import annotations

import pytest
from tokenizers import Regex, pre_tokenizers

from rorqual.tokenizer import special
from rorqual.tokenizer.bpe import official


def _pieces(text: str) -> list[str]:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in special.SPLITS]
    return [piece for piece, _ in pre_tokenizers.Sequence(splits).pre_tokenize_str(text)]


def test_spelling() -> None:
    assert special.BOS == "<\uff5cbegin\u2581of\u2581sentence\uff5c>" and special.EOS == "<\uff5cend\u2581of\u2581sentence\uff5c>"
    assert special.PAD == "<\uff5c\u2581pad\u2581\uff5c>" and special.FIM_HOLE == "<\uff5cfim\u2581hole\uff5c>"
    every = special.LEADING + special.TRAILING
    assert len(set(every)) == len(every) == 20
    assert [token for token in every if "\uff5c" not in token] == ["<think>", "</think>", "<|EOT|>"]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("1234567", ["123", "456", "7"]),
        ("x = y1234", ["x", " =", " y", "123", "4"]),
        ("hello  world", ["hello", " ", " world"]),
        ("a  1", ["a", "  ", "1"]),
        ("f(x):\n    return", ["f", "(x", "):\n", "   ", " return"]),
        ("\u6df1\u5ea6 ok\u3002\n", ["\u6df1\u5ea6", " ok", "\u3002\n"]),
        (" \r\n\n x", [" \r\n\n", " x"]),
        ("e\u0301t\u00e9", ["e\u0301t\u00e9"]),
        ("_name", ["_name"]),
        ("\u00a0\u00a0x\u2028", ["\u00a0", "\u00a0x", "\u2028"]),
    ],
)
def test_the_pre_tokeniser_splits_by_hand(text: str, pieces: list[str]) -> None:
    assert _pieces(text) == pieces


@pytest.mark.peer
def test_the_published_file_has_these_tokens_and_splits() -> None:
    tokenizer = official()
    assert [tokenizer.token_to_id(token) for token in special.LEADING] == [0, 1, 2]
    ids = [tokenizer.token_to_id(token) for token in special.TRAILING]
    assert ids == list(range(128798, 128815)), "in the order of the file, after the base vocabulary"
    assert tokenizer.token_to_id(special.THINK_BEGIN) == 128798 and tokenizer.vocab_size == 128815
    parts = tokenizer.content()["pre_tokenizer"]["pretokenizers"]
    assert [part.get("pattern", {}).get("Regex") for part in parts] == [*special.SPLITS, None]
