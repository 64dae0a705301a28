"""The written templates give the renderer's ids, in our sandbox and in transformers, and are known again by their style."""

from __future__ import annotations

from pathlib import Path

import pytest

from rorqual.errors import DataError, TokenizerError
from rorqual.tokenizer import bpe, chat, templates
from rorqual.tokenizer.chat_jinja import chat_template

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "<think>\none and one\n</think>\n\n2"},
    {"role": "user", "content": "And 2 + 2? <think> is text here"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> bpe.Tokenizer:
    return bpe.train(["one and two are three; 1 + 1 = 2\n"] * 20, 300, tmp_path_factory.mktemp("jinja") / "tokenizer")


@pytest.mark.parametrize("style", chat.STYLES)
@pytest.mark.parametrize("thinking", [None, True, False])
@pytest.mark.parametrize("talk", [TALK, TALK[1:2], TALK[:1]], ids=["four", "one", "system"])
def test_it_writes_what_the_renderer_writes(tokenizer, style, thinking, talk):
    ours = chat.render(talk, tokenizer, style=style, thinking=thinking)
    theirs = templates.render_template(chat_template(style), talk, tokenizer, thinking=thinking)
    assert theirs.ids == ours.ids and theirs.reasoning == ours.reasoning


@pytest.mark.parametrize("style", chat.STYLES)
def test_its_style_is_known_again_and_it_refuses_what_it_cannot_write(tokenizer, style, tmp_path: Path):
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(chat_template(style), encoding="utf-8")
    assert templates.style_of(bpe.load(tmp_path)) == style
    tools = [{"type": "function", "function": {"name": "f"}}]
    with pytest.raises((DataError, TokenizerError), match="no form for tools"):
        templates.render_template(chat_template(style), TALK, tokenizer, tools=tools)
    with pytest.raises(ValueError, match="must be one of"):
        chat_template("chatml")


@pytest.mark.peer
@pytest.mark.parametrize("style", chat.STYLES)
def test_transformers_writes_the_same(tokenizer, style, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(chat_template(style), encoding="utf-8")
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    talk = TALK[1:3]
    assert peer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False) == tokenizer.decode(
        chat.render(talk, tokenizer, style=style).ids
    )
