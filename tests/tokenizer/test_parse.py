"""The parser: values of the field's cases, every way tokens can cut the text, and nothing lost (F20, F21, F23)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rorqual.tokenizer import special
from rorqual.tokenizer.chat import render
from rorqual.tokenizer.parse import Answer, Event, StreamParser
from tests.tokenizer.samples import tokenizer

BYTE = {tokenizer().token_bytes(number): number for number in range(3, 259)}
S = special
CALL_V3 = f"{S.TOOL_CALL_BEGIN}function{S.TOOL_SEP}%s\n```json\n%s\n```{S.TOOL_CALL_END}"


def parser(style: str = "v3", **options: object) -> StreamParser:
    count = itertools.count()
    return StreamParser(style, tokenizer(), new_id=lambda: f"call_{next(count)}", **options)  # type: ignore[arg-type]


def fold(groups: Sequence[Sequence[int]], style: str = "v3", **options: object) -> tuple[Answer, list[Event]]:
    machine = parser(style, **options)
    events = [event for group in groups for event in machine.feed(group)] + machine.finish()
    assert events[-1] == Event("end") and [event.kind for event in events].count("end") == 1
    return Answer().add(events), events


def parts(text: str, style: str = "v3", **options: object) -> tuple[str, str]:
    """(reasoning, content), the same for whole tokens, single bytes and every way to cut the text in two."""
    answer, _ = fold([tokenizer().encode(text)], style, **options)
    data = text.encode()
    for groups in ([[BYTE[bytes([byte])]] for byte in data], *([encoded(data[:at]), encoded(data[at:])] for at in range(len(data)))):
        assert fold(groups, style, **options)[0] == answer
    return answer.reasoning, answer.content


def encoded(data: bytes) -> list[int]:
    return [BYTE[bytes([byte])] for byte in data]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a</think>b", ("a", "b")), ("a", ("a", "")), ("a</think>b</think>c", ("a", "b</think>c")), ("", ("", "")),
        ("\na\n\nb\n</think>\n\nc\n", ("a\n\nb", "c\n")), ("</think>b", ("", "b")), ("a </th", ("a </th", "")), ("a</thin k", ("a</thin k", "")),
    ],
)  # fmt: skip
def test_after_a_prompt_that_opens_the_reasoning(text: str, expected: tuple[str, str]) -> None:
    assert parts(text, "r1", reasoning=True) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("b", ("", "b")), ("<think>a</think>b", ("a", "b")), ("see </think> here", ("", "see </think> here")), ("<thin", ("", "<thin")),
        (" <think>\na</think>b", ("a", "b")), ("  b", ("", "  b")), ("b <think>a</think>", ("", "b <think>a</think>")), ("<think>", ("", "")),
    ],
)  # fmt: skip
def test_after_a_prompt_that_does_not(text: str, expected: tuple[str, str]) -> None:
    assert parts(text) == parts(text, "template") == expected
    assert parts(text, "plain") == ("", text)


def test_the_prompt_says_where_an_answer_begins() -> None:
    for style, reasoning in (("v3", False), ("r1", True), ("v3.1", False)):
        rendered = render([{"role": "user", "content": "hi"}], tokenizer(), style=style)  # type: ignore[arg-type]
        machine = parser(style, reasoning=rendered.reasoning)
        assert machine.reasoning is reasoning


def test_reasoning_tokens_are_counted() -> None:
    machine = parser("r1", reasoning=True)
    machine.feed([*encoded(b"abc"), tokenizer().encode("</think>")[0], *encoded(b"de")])
    assert machine.reasoning_tokens == 3


@pytest.mark.parametrize("text", ["🦈", "🙂", "𠮷", "👍🏽", "한국어", "देवनागरी", "a\u0301"])
def test_characters_split_over_tokens_come_whole(text: str) -> None:
    assert parts(text) == ("", text)
    for first, second in itertools.combinations(range(len(text.encode()) + 1), 2):
        data = text.encode()
        _, events = fold([encoded(data[:first]), encoded(data[first:second]), encoded(data[second:])])
        assert all("\ufffd" not in event.text for event in events)


def test_cut_and_stray_bytes() -> None:
    shark = "🦈".encode()
    assert fold([encoded(b"a" + shark[:2])])[0].content == "a\ufffd"
    assert fold([encoded(b"a"), encoded(shark[:2]), [tokenizer().eos_id or 0]])[0].content == "a\ufffd"
    machine = parser()
    assert machine.feed(encoded(b"\x80")) + machine.feed(encoded(b"b")) == [Event("content", "\ufffd"), Event("content", "b")]


def test_end_tokens_are_silent_unless_asked_for() -> None:
    ids = [*encoded(b"a"), 1, 2]
    assert fold([ids])[0].content == "a"
    assert fold([ids], special_tokens=True)[0].content == f"a{S.EOS}{S.PAD}"
    assert fold([[9999]])[0].content == ""


def calls(text: str, style: str = "v3") -> tuple[str, list[tuple[str, str, str]]]:
    """Content and calls, the same token by token and at once; every call has one start with its own id and index."""
    ids = tokenizer().encode(text)
    answer, _ = fold([ids], style, tools=True)
    single, events = fold([[number] for number in ids], style, tools=True)
    assert single == answer
    starts = [(event.index, event.id) for event in events if event.kind == "call"]
    assert starts == [(n, f"call_{n}") for n in range(len(answer.calls))]
    return answer.content, [(call.id, call.name, call.arguments) for call in answer.calls]


JSON = '{\n  "city": "深度",\n  "days": [1, 2]\n}'


def test_two_calls_with_arguments_over_several_lines() -> None:
    text = f"Let me see.\n{S.TOOL_CALLS_BEGIN}{CALL_V3 % ('weather', JSON)}\n{CALL_V3 % ('time.now', '{}')}{S.TOOL_CALLS_END}{S.EOS}"
    assert calls(text) == ("Let me see.\n", [("call_0", "weather", JSON), ("call_1", "time.now", "{}")])
    v31 = f"{S.TOOL_CALL_BEGIN}%s{S.TOOL_SEP}%s{S.TOOL_CALL_END}"
    text = f"ok{S.TOOL_CALLS_BEGIN}{v31 % ('weather', JSON)}{v31 % ('f', ' {} ')}{S.TOOL_CALLS_END}{S.EOS}"
    assert calls(text, "v3.1") == ("ok", [("call_0", "weather", JSON), ("call_1", "f", " {}")])


def test_arguments_come_as_they_are_written() -> None:
    text = f"{S.TOOL_CALLS_BEGIN}{CALL_V3 % ('weather', JSON)}{S.TOOL_CALLS_END}"
    _, events = fold([[number] for number in tokenizer().encode(text)], tools=True)
    arguments = [event.text for event in events if event.kind == "arguments"]
    assert len(arguments) > 5 and json.loads("".join(arguments)) == json.loads(JSON)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": ', '{"a":'), ("oh: no", "oh: no"), ("", "{}"), ("   ", "{}"), ('{"a": "``` `` `"}', '{"a": "``` `` `"}'), ('{"a": "\n```\n"}', '{"a": "\n```\n"}'),
    ],
)  # fmt: skip
def test_arguments_that_are_no_json_are_passed_on(text: str, expected: str) -> None:
    assert calls(f"{S.TOOL_CALLS_BEGIN}{CALL_V3 % ('f', text)}{S.TOOL_CALLS_END}") == ("", [("call_0", "f", expected)])


@pytest.mark.parametrize(
    "body",
    ['f\n{"a": 1}', 'f\n```\n{"a": 1}\n```', 'f\n\n```json\n{"a": 1}```', ' f \n```json\n{"a": 1}\n', 'f\n```json \n{"a": 1}\n```\n\n'],
)  # fmt: skip
def test_untidy_fences(body: str) -> None:
    text = f"{S.TOOL_CALLS_BEGIN}{S.TOOL_CALL_BEGIN}function{S.TOOL_SEP}{body}{S.TOOL_CALL_END}{S.TOOL_CALLS_END}"
    assert calls(text) == ("", [("call_0", "f", '{"a": 1}')])


def test_missing_frame_tokens() -> None:
    call = CALL_V3 % ("f", "{}")
    assert calls(f"a{call}") == ("a", [("call_0", "f", "{}")])
    assert calls(f"{S.TOOL_CALLS_BEGIN}{call.removesuffix(S.TOOL_CALL_END)}{call}") == ("", [("call_0", "f", "{}"), ("call_1", "f", "{}")])
    name_only = f"{S.TOOL_CALL_BEGIN}function{S.TOOL_SEP}f{S.TOOL_CALL_END}"
    assert calls(f"{S.TOOL_CALLS_BEGIN}{name_only}{S.TOOL_CALLS_END} and so") == ("and so", [("call_0", "f", "{}")])


@pytest.mark.parametrize(
    "broken",
    [
        f"{S.TOOL_CALL_BEGIN}function", f"{S.TOOL_CALL_BEGIN}hello{S.TOOL_CALL_END}", f"{S.TOOL_CALL_BEGIN}function{S.TOOL_SEP}",
        f"{S.TOOL_CALL_BEGIN}function{S.TOOL_SEP}f", f"{S.TOOL_CALL_BEGIN}function{S.TOOL_SEP}two words\n{{}}{S.TOOL_CALL_END}", S.TOOL_SEP,
        S.TOOL_CALL_END, f"{S.TOOL_CALL_BEGIN}function{S.TOOL_SEP}{{}}{S.TOOL_CALL_END}",
    ],
)  # fmt: skip
def test_what_is_no_call_becomes_text(broken: str) -> None:
    assert calls(f"a{broken}") == (f"a{broken}", [])


def test_arguments_cut_by_the_length_limit() -> None:
    text = f"{S.TOOL_CALLS_BEGIN}{S.TOOL_CALL_BEGIN}function{S.TOOL_SEP}f\n```json\n"
    assert calls(text) == ("", [("call_0", "f", "")])
    assert calls(text + '{"a"') == ("", [("call_0", "f", '{"a"')])


def test_calls_are_text_without_tools_and_end_the_reasoning_with_them() -> None:
    text = f"{S.TOOL_CALLS_BEGIN}{CALL_V3 % ('f', '{}')}{S.TOOL_CALLS_END}"
    assert fold([tokenizer().encode(text)])[0].content == text
    answer, _ = fold([tokenizer().encode(f"hm\n</think>\n\n{text}")], "r1", tools=True, reasoning=True)
    assert (answer.reasoning, answer.content, len(answer.calls)) == ("hm", "", 1)
    answer, _ = fold([tokenizer().encode(f"hm {text}")], "r1", tools=True, reasoning=True)
    assert (answer.reasoning, answer.content, len(answer.calls)) == ("hm ", "", 1)


def test_text_that_looks_like_a_call_stays_text() -> None:
    text = f"{S.TOOL_CALLS_BEGIN}{CALL_V3 % ('f', '{}')}"
    assert fold([tokenizer().encode_text(text)], tools=True)[0] == Answer("", text)


class _Stop:
    """Cuts at a string, as inference.stops does, and holds back its beginnings."""

    def __init__(self, stop: str) -> None:
        self._stop, self._text, self._given, self._done = stop, b"", 0, False

    def add(self, token_ids: object) -> str:
        self._text += b"".join(map(tokenizer().token_bytes, token_ids))  # type: ignore[call-overload]
        text = self._text.decode("utf-8", "ignore")
        at = text.find(self._stop)
        self._done |= at >= 0
        held = max((n for n in range(len(self._stop)) if text.endswith(self._stop[:n])), default=0)
        end = at if at >= 0 else len(text) - held
        given, self._given = self._given, max(self._given, end)
        return text[given:end]

    def finish(self) -> str:
        return "" if self._done else self._text.decode("utf-8", "replace")[self._given :]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("abcENDdef", "END", ("", "abc")), ("abcEN", "END", ("", "abcEN")), ("<think>a</think>bXc", "X", ("a", "b")), ("<think>aXb", "X", ("a", "")),
        ("深度求索", "求", ("", "深度")), (f"a{S.EOT}b", S.EOT, ("", "a")), (f"a{S.EOS}b", "b", ("", "a")),
    ],
)  # fmt: skip
def test_stop_strings_cut_the_events(text: str, stop: str, expected: tuple[str, str]) -> None:
    ids = tokenizer().encode(text)
    for groups in ([ids], [[number] for number in ids]):
        answer, _ = fold(groups, stop=_Stop(stop))
        assert (answer.reasoning, answer.content) == expected


@given(st.lists(st.integers(0, tokenizer().vocab_size - 1), max_size=60), st.data())
def test_any_ids_give_one_answer_however_they_arrive(ids: list[int], data: st.DataObject) -> None:
    style = data.draw(st.sampled_from(["v3", "r1", "v3.1", "template", "plain"]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    groups = [ids[a:b] for a, b in itertools.pairwise([0, *cuts, len(ids)])]
    for tools, reasoning in itertools.product((False, True), repeat=2):
        whole, _ = fold([ids], style, tools=tools, reasoning=reasoning)
        pieces, _ = fold(groups, style, tools=tools, reasoning=reasoning)
        assert pieces == whole
