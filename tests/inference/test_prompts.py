"""Where a prompt begins and an answer ends (F22: BOS once, every end token that a file names)."""

from __future__ import annotations

import json

import pytest

from rorqual.errors import DataError
from rorqual.inference.prompts import end_ids, prompt_ids
from rorqual.tokenizer import bpe
from tests.tokenizer.samples import tokenizer


def test_prompts_and_their_beginning():
    words = tokenizer()
    text = words.encode("value")
    assert prompt_ids(words, "value", False, 1) == text
    assert prompt_ids(words, "value", True, 1) == [words.bos_id, *text]
    assert prompt_ids(words, "<\uff5cbegin\u2581of\u2581sentence\uff5c>value", True, 1) == [words.bos_id, *text]
    assert prompt_ids(words, "", False, 7) == [7] and prompt_ids(words, "", True, 7) == [words.bos_id]
    with pytest.raises(DataError, match="not valid Unicode"):
        prompt_ids(words, "\udcff", False, 1)


def test_end_tokens_come_from_every_file_that_names_them(tmp_path):
    words = tokenizer()
    assert end_ids(tmp_path, words) == (words.eos_id,)
    for content, want in (([7, 9], {7, 9}), (8, {8}), (None, set()), ("x", set())):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": content}))
        assert set(end_ids(tmp_path, words)) == want | {words.eos_id}
    (tmp_path / "generation_config.json").write_text("[")
    assert end_ids(tmp_path, words) == (words.eos_id,)


def test_whether_bos_is_added_is_the_tokenizers_own_setting(tmp_path):
    tokenizer().save(tmp_path)
    assert not bpe.load(tmp_path).adds_bos
    side = tmp_path / "tokenizer_config.json"
    side.write_text(json.dumps(json.loads(side.read_text()) | {"add_bos_token": True}))
    assert bpe.load(tmp_path).adds_bos
