"""The written templates give the renderer's ids, in our sandbox and in transformers, and are known again by their style."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rorqual.errors import DataError
from rorqual.tokenizer import bpe, chat, templates
from rorqual.tokenizer.chat_jinja import chat_template

pytest.importorskip("jinja2", reason="templates need the extra serve")

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "1 + 1?"}
ANSWERED = {"role": "assistant", "content": "<think>\none and one\n</think>\n\n2"}
TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "Adds « a » and b.", "parameters": {"type": "object", "properties": {"a": {}}}}},
    {"type": "function", "function": {"name": "now"}},
]  # fmt: skip


def call(name: str, arguments: Any = None, **more: Any) -> dict[str, Any]:
    given = {} if arguments is None else {"arguments": arguments}
    return {"id": "1", "type": "function", "function": {"name": name, **given}, **more}


TWO_CALLS = {
    "role": "assistant",
    "content": None,
    "tool_calls": [call("add", {"a": 1, "b": "é"}), call("now")],
    "reasoning_content": "\nI need both\n",
}
OUTPUTS = [{"role": "tool", "content": "2", "tool_call_id": "1"}, {"role": "tool", "content": [{"type": "text", "text": "noon"}]}]
TALKS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = {
    "one": ([ASKED], None),
    "past": ([SYSTEM, ASKED, ANSWERED, {"role": "user", "content": "And 2 + 2? <think> is text"}], None),
    "system": ([SYSTEM], None),
    "answered": ([ASKED, ANSWERED | {"reasoning_content": "one and one"}], None),
    "literal": ([ASKED, {"role": "assistant", "content": "say </think> literally"}, ASKED], None),
    "literal, behind reasoning": ([ASKED, {"role": "assistant", "content": "<think>a</think>\n\nb</think>c"}, ASKED], None),
    "tools": ([ASKED], TOOLS),
    "tools and system": ([SYSTEM, ASKED, {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], TOOLS),
    "called": ([ASKED, TWO_CALLS], TOOLS),
    "outputs": ([ASKED, TWO_CALLS, *OUTPUTS], TOOLS),
    "answer behind outputs": (
        [ASKED, TWO_CALLS, *OUTPUTS, {"role": "assistant", "content": "2, at noon", "reasoning": "so"}],
        TOOLS,
    ),
    "calls in past turns": (
        [
            ASKED, TWO_CALLS | {"content": "Let me see. "}, *OUTPUTS, {"role": "assistant", "content": "2"}, ASKED,
            {"role": "assistant", "tool_calls": [call("add", "not JSON")]}, OUTPUTS[0], {"role": "user", "content": "go on"},
        ],
        TOOLS,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> bpe.Tokenizer:
    return bpe.train(["one and two are three; 1 + 1 = 2\n"] * 20, 300, tmp_path_factory.mktemp("jinja") / "tokenizer")


def compare(tokenizer: bpe.Tokenizer, style: Any, name: str, thinking: bool | None, prompt: bool) -> None:
    talk, tools = TALKS[name]
    ours = chat.render(talk, tokenizer, style=style, tools=tools, thinking=thinking, add_generation_prompt=prompt)
    theirs = templates.render_template(chat_template(style), talk, tokenizer, tools=tools, thinking=thinking, add_generation_prompt=prompt)
    assert tokenizer.decode(theirs.ids) == tokenizer.decode(ours.ids), (name, thinking, prompt)
    if not name.startswith("literal"):  # a template leaves a literal tag in an answer to whoever encodes its string
        assert theirs.ids == ours.ids and theirs.reasoning >= ours.reasoning, (name, thinking, prompt)


@pytest.mark.parametrize("style", chat.STYLES)
def test_it_writes_what_the_renderer_writes(tokenizer: bpe.Tokenizer, style: Any) -> None:
    compare(tokenizer, style, "past", None, True)
    compare(tokenizer, style, "tools and system", False, True)
    compare(tokenizer, style, "answer behind outputs", True, False)
    compare(tokenizer, style, "calls in past turns", True, True)


@pytest.mark.slow
@pytest.mark.parametrize("style", chat.STYLES)
@pytest.mark.parametrize("name", TALKS)
def test_it_writes_what_the_renderer_writes_in_every_case(tokenizer: bpe.Tokenizer, style: Any, name: str) -> None:
    for thinking in (None, True, False):
        for prompt in (True, False):
            compare(tokenizer, style, name, thinking, prompt)


def test_a_call_is_the_published_string(tokenizer: bpe.Tokenizer) -> None:
    """Field case F21."""
    talk = [ASKED, {"role": "assistant", "tool_calls": [call("f", {"a": 1})]}]
    made = templates.render_template(chat_template("v3"), talk, tokenizer, add_generation_prompt=False)
    assert tokenizer.decode(made.ids).endswith(
        "<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
        '{"a": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>'
    )


@pytest.mark.parametrize("style", chat.STYLES)
def test_its_style_is_known_again_and_it_refuses_what_it_cannot_write(tokenizer: bpe.Tokenizer, style: str, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(chat_template(style), encoding="utf-8")
    assert templates.style_of(bpe.load(tmp_path)) == style
    with pytest.raises(DataError, match="role"):
        templates.render_template(chat_template(style), [{"role": "critic", "content": "no"}], tokenizer)
    with pytest.raises(ValueError, match="must be one of"):
        chat_template("chatml")


@pytest.mark.peer
@pytest.mark.parametrize("style", chat.STYLES)
def test_transformers_writes_the_same(tokenizer: bpe.Tokenizer, style: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(chat_template(style), encoding="utf-8")
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for name, (talk, tools) in TALKS.items():
        for thinking in (None, True, False):
            ours = chat.render(talk, tokenizer, style=style, tools=tools, thinking=thinking)
            more = {} if thinking is None else {"thinking": thinking}
            text = peer.apply_chat_template(talk, tools=tools, add_generation_prompt=True, tokenize=False, **more)
            assert text == tokenizer.decode(ours.ids), (name, thinking)
    with pytest.raises(Exception, match="no role of"):
        peer.apply_chat_template([{"role": "critic", "content": "no"}], tokenize=False)
