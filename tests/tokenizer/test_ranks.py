"""tiktoken.model files: ids equal tiktoken's, special tokens by their file, remote code untouched, broken files refused by line."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rorqual.errors import TokenizerError
from rorqual.tokenizer import bpe, ranks
from tests.checkpoint import members

TEXTS = ("hello world", "The 12345 things, they're here.\n\nWE'LL go", "\u6df1\u5ea6\u6c42\u7d22 and \u00e9\u00e8", "  two  spaces\t\r\n x", "\U0001f988\U0001f642",
         "thththehehe ining ininging", "don't DON'T", "\u0915\u094d\u0937", "", "a\u0301 e\u0301")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kimi")
    members.write_tokenizer(path, "kimi_k2")
    return path


@pytest.fixture(scope="module")
def peer(folder: Path):  # type: ignore[no-untyped-def]
    tiktoken = pytest.importorskip("tiktoken", reason="compares with tiktoken (extra dev)")
    table = members.ranks()
    names = {text: len(table) + offset for offset, text in members.KIMI_SPECIAL.items()}
    return tiktoken.Encoding("kimi", pat_str=members.KIMI_PATTERN, mergeable_ranks=table, special_tokens=names)


def test_the_pattern_is_the_published_one() -> None:
    assert ranks.SPLIT == members.KIMI_PATTERN


def test_ids_are_tiktokens(folder: Path, peer) -> None:  # type: ignore[no-untyped-def]
    tokenizer = bpe.load(folder)
    for text in TEXTS:
        assert tokenizer.encode(text) == peer.encode(text), text
        assert tokenizer.decode(tokenizer.encode(text)) == text
    text = "<|im_user|>user<|im_middle|>hello<|im_end|>"
    assert tokenizer.encode(text) == peer.encode(text, allowed_special="all")


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="then wordlig \n12'sA\u6df1\u00e9", max_size=40))
def test_ids_are_tiktokens_on_any_text(folder: Path, peer, text: str) -> None:  # type: ignore[no-untyped-def]
    assert bpe_of(folder).encode(text) == peer.encode(text, disallowed_special=())


_LOADED: dict[Path, bpe.Tokenizer] = {}


def bpe_of(folder: Path) -> bpe.Tokenizer:
    if folder not in _LOADED:
        _LOADED[folder] = bpe.load(folder)
    return _LOADED[folder]


def test_special_and_reserved_ids(folder: Path) -> None:
    tokenizer, base = bpe.load(folder), len(members.ranks())
    assert tokenizer.vocab_size == base + ranks.RESERVED
    assert tokenizer.token_to_id("[BOS]") == tokenizer.bos_id == base and tokenizer.eos_id == base + 1
    assert tokenizer.token_to_id(f"<|reserved_token_{base + 5}|>") == base + 5
    assert tokenizer.token_to_id("<|im_end|>") == base + 2


def test_saved_as_tokenizer_json_it_stays_the_same(folder: Path, tmp_path: Path) -> None:
    tokenizer = bpe.load(folder)
    tokenizer.save(tmp_path)
    assert all(bpe.load(tmp_path).encode(text) == tokenizer.encode(text) for text in TEXTS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [*lines[:5], b"not base64! 5", *lines[6:]], "line 6: expected a new token"),
        (lambda lines: [*lines, lines[0]], "expected a new token"),
        (lambda lines: [*lines[:7], *lines[8:]], r"ranks must be 0 to"),
        (lambda lines: [line.replace(b" 0", b" x") if line.endswith(b" 0") else line for line in lines], "line 1"),
        (
            lambda lines: [base64.b64encode(b"xyz") + b" 3" if line.endswith(b" 3") else line for line in lines],
            "256 single bytes are missing, the first is 3",
        ),
        (lambda lines: [], "single bytes are missing"),
    ],
)
def test_broken_files_are_refused(folder: Path, tmp_path: Path, change, words: str) -> None:  # type: ignore[no-untyped-def]
    lines = (folder / ranks.FILE).read_bytes().split(b"\n")[:-1]
    (tmp_path / ranks.FILE).write_bytes(b"\n".join(change(lines)))
    with pytest.raises(TokenizerError, match=words):
        bpe.load(tmp_path)


def test_broken_settings_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / ranks.FILE).write_bytes((folder / ranks.FILE).read_bytes())
    for text, words in (
        ("{", "cannot read"),
        ("[]", "not an object"),
        (json.dumps({"added_tokens_decoder": {"3": {"content": "x"}}}), "ids from"),
    ):
        (tmp_path / "tokenizer_config.json").write_text(text)
        with pytest.raises(TokenizerError, match=words):
            bpe.load(tmp_path)
