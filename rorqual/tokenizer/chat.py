"""Messages to token ids, for chat, SFT, RL prompts and evaluation alike (specification section 10.5, field cases F20 and F21).

    BOS system <User> question <Assistant> answer EOS <User> ... <Assistant>

Control tokens come from here alone. Text of a message is encoded as text, so that nobody can write a turn, a tool result or an end
token into a prompt. Three styles, which are DeepSeek's: `v3`; `r1`, whose answers begin inside `<think>`; `v3.1`, where every answer
begins with `<think>` or `</think>` and calls are written without fences.

With `official=True` the ids are those of the published V3 template, byte for byte. Otherwise four of its slips are put right: the
second turn with calls and the second group of tool outputs get their opening tokens, outputs are closed before a user's turn, and
`</think>` in a past answer cuts only where there was a reasoning block.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, Literal

from rorqual.errors import DataError, TokenizerError
from rorqual.tokenizer import special
from rorqual.tokenizer.bpe import Tokenizer

Style = Literal["v3", "r1", "v3.1"]
STYLES: Final = ("v3", "r1", "v3.1")
ROLES: Final = ("system", "developer", "user", "assistant", "tool")

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Piece:
    """Ids `start` to `end` of one role. Kinds: `control`, `text`, `reasoning`, `calls`, `output`, and `end` for an answer's end token.

    What a model has to write itself are the assistant's pieces of any kind but `control`.
    """

    role: str
    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Rendered:
    """A prompt. `reasoning` says that it leaves a `<think>` open, so that the answer begins inside the reasoning."""

    ids: list[int]
    pieces: list[Piece]
    reasoning: bool = False


@dataclass
class Writer:
    """Ids and pieces as they are written; text between two control tokens is encoded in one go."""

    tokenizer: Tokenizer
    ids: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    _run: list[str] = field(default_factory=list)
    _owner: tuple[str, str] = ("", "")

    def text(self, text: str, role: str, kind: str = "text") -> None:
        """Appends text; several in a row belong to the first one's role and kind."""
        if not self._run:
            self._owner = (role, kind)
        self._run.append(text)

    def control(self, token: str, role: str, kind: str = "control") -> None:
        """Appends a control token by its string; TokenizerError where the tokenizer has none."""
        self.flush()
        number = self.tokenizer.token_to_id(token)
        if number is None:
            raise TokenizerError(f"the tokenizer has no token {token!r}, which this chat style needs; use the model's own chat template")
        self._append([number], role, kind)

    def flush(self) -> None:
        """Encodes the text that waits."""
        ids = self.tokenizer.encode_text("".join(self._run))
        self._run = []
        if ids:
            self._append(ids, *self._owner)

    def _append(self, ids: list[int], role: str, kind: str) -> None:
        self.pieces.append(Piece(role, kind, len(self.ids), len(self.ids) + len(ids)))
        self.ids += ids


def render(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    style: Style = "v3",
    thinking: bool | None = None,
    official: bool = False,
) -> Rendered:
    """The prompt that asks for the next answer, or, without the generation prompt, the conversation as it stands.

    thinking: whether the answer reasons first (None: as the style does by itself). Reasoning of past turns is left out, that of
    the turn under way, given as `reasoning_content`, is kept where answers reason. official: exactly the published V3 template,
    which shows no tools. DataError names the message that cannot be rendered.
    """
    if style not in STYLES:
        raise DataError(f"style ({style!r}) must be one of {', '.join(STYLES)}")
    checked = [check_message(message, at) for at, message in enumerate(messages)]
    if not checked:
        raise DataError("messages is empty; give at least one")
    renderer = _Renderer(Writer(tokenizer), style, style == "r1" if thinking is None else thinking, official)
    return renderer.render(checked, tools, add_generation_prompt)


class _Renderer:
    def __init__(self, writer: Writer, style: str, thinking: bool, official: bool) -> None:
        self.out, self.style, self.thinking, self.official = writer, style, thinking, official
        self.after_output = False  # the last message was a tool's
        self.any_output = False
        self.any_call = False

    def render(self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None, add_generation_prompt: bool) -> Rendered:
        """All messages in order, system text first, and the opening of the next answer where it is asked for."""
        out = self.out
        out.control(special.BOS, "system")
        out.text("\n\n".join(message["content"] for message in messages if message["role"] == "system"), "system")
        if tools and not self.official:
            self._tools(tools, any(message["role"] == "system" for message in messages))
        last_user = max((at for at, message in enumerate(messages) if message["role"] == "user"), default=-1)
        for at, message in enumerate(messages):
            match message["role"]:
                case "user":
                    self._close_outputs("user")
                    out.control(special.USER, "user")
                    out.text(message["content"], "user")
                case "assistant":
                    self._assistant(message, current=at > last_user)
                case "tool":
                    self._output(message["content"])
        reasoning = False
        if self.after_output and self.style != "v3.1":
            out.control(special.TOOL_OUTPUTS_END, "tool")
        if add_generation_prompt and not self.after_output:
            reasoning = self._begin_answer()
        out.flush()
        return Rendered(out.ids, out.pieces, reasoning)

    def _close_outputs(self, role: str) -> None:
        if self.after_output and self.style != "v3.1" and (not self.official or role == "assistant"):
            self.out.control(special.TOOL_OUTPUTS_END, "tool")
        self.after_output = False

    def _begin_answer(self) -> bool:
        """What stands before an answer that the model is to write; True if that leaves it reasoning."""
        out = self.out
        out.control(special.ASSISTANT, "assistant")
        if self.style == "v3.1":
            out.control(special.THINK_BEGIN if self.thinking else special.THINK_END, "assistant")
        elif self.thinking:
            out.control(special.THINK_BEGIN, "assistant")
            out.text("\n", "assistant", "control")
        elif self.style == "r1" and not self.official:
            self._empty_reasoning()
        return self.thinking

    def _empty_reasoning(self) -> None:
        """The way to have R1 answer at once."""
        out = self.out
        out.control(special.THINK_BEGIN, "assistant")
        out.text("\n\n", "assistant", "control")
        out.control(special.THINK_END, "assistant")
        out.text("\n\n", "assistant", "control")
        out.flush()

    def _assistant(self, message: dict[str, Any], current: bool) -> None:
        out, calls = self.out, message["tool_calls"]
        continues = self.after_output
        if self.official and calls:
            self.after_output = continues = False
        self._close_outputs("assistant")
        content = message["content"] if self.official and (calls or continues) else self._without_reasoning(message["content"])
        if not continues and not (self.official and calls and self.any_call):
            self._open_answer(message["reasoning"] if current else "", current)
        elif current and message["reasoning"] and self.thinking and not self.official:
            self._reasoning(message["reasoning"], opened=False)
        if not (self.official and calls and self.any_call):
            out.text(content, "assistant")
        for number, call in enumerate(calls):
            self._call(call, first=number == 0)
        if calls:
            out.control(special.TOOL_CALLS_END, "assistant", "calls")
        out.control(special.EOS, "assistant", "end")

    def _open_answer(self, reasoning: str, current: bool) -> None:
        keep = bool(reasoning) and self.thinking and not self.official
        self.out.control(special.ASSISTANT, "assistant")
        if keep:
            self._reasoning(reasoning, opened=True)
        elif self.style == "v3.1":
            self.out.control(special.THINK_END, "assistant")
        elif current and self.style == "r1" and not self.thinking and not self.official:  # as its prompt ended
            self._empty_reasoning()

    def _reasoning(self, reasoning: str, opened: bool) -> None:
        """A reasoning block; `opened` where its first token is the prompt's, not the model's."""
        out, gap = self.out, "" if self.style == "v3.1" else "\n"
        out.control(special.THINK_BEGIN, "assistant", "control" if opened else "reasoning")
        out.text(gap, "assistant", "control" if opened else "reasoning")
        if opened:
            out.flush()
        out.text(reasoning.strip("\n") + gap, "assistant", "reasoning")
        out.control(special.THINK_END, "assistant", "reasoning")
        out.text(2 * gap, "assistant")

    def _without_reasoning(self, content: str) -> str:
        if self.official:
            return content.rpartition(special.THINK_END)[2]
        began = content.lstrip().startswith(special.THINK_BEGIN)
        if special.THINK_END in content and (began or self.thinking):
            return content.partition(special.THINK_END)[2].lstrip("\n")
        return content

    def _call(self, call: dict[str, str], first: bool) -> None:
        out = self.out
        opened = self.any_call if self.official else not first
        if not opened:
            out.control(special.TOOL_CALLS_BEGIN, "assistant", "calls")
        elif self.style != "v3.1":
            out.text("\n", "assistant", "calls")
        self.any_call = True
        out.control(special.TOOL_CALL_BEGIN, "assistant", "calls")
        out.text(call["name"] if self.style == "v3.1" else call["type"], "assistant", "calls")
        out.control(special.TOOL_SEP, "assistant", "calls")
        arguments = call["arguments"]
        out.text(arguments if self.style == "v3.1" else f"{call['name']}\n```json\n{arguments}\n```", "assistant", "calls")
        out.control(special.TOOL_CALL_END, "assistant", "calls")

    def _output(self, content: str) -> None:
        opened = self.any_output if self.official else self.after_output
        if not opened and self.style != "v3.1":
            self.out.control(special.TOOL_OUTPUTS_BEGIN, "tool")
        self.any_output = self.after_output = True
        self.out.control(special.TOOL_OUTPUT_BEGIN, "tool")
        self.out.text(content, "tool", "output")
        self.out.control(special.TOOL_OUTPUT_END, "tool")

    def _tools(self, tools: Sequence[Mapping[str, Any]], after_system: bool) -> None:
        """The functions and how to call them, at the end of the system text; the V3.1 wording is the published one."""
        out = self.out
        lines = ["\n\n"] if after_system else []
        lines.append("## Tools\nYou have access to the following tools:\n\n")
        for function in map(check_tool, tools, range(len(tools))):
            described = json.dumps(function["parameters"], ensure_ascii=False)
            lines.append(f"### {function['name']}\nDescription: {function['description']}\n\nParameters: {described}\n\n")
        out.text("".join(lines), "system")
        out.text("IMPORTANT: ALWAYS adhere to this exact format for tool use:\n", "system")
        short = self.style == "v3.1"
        for token, text in (
            (special.TOOL_CALLS_BEGIN, ""),
            (special.TOOL_CALL_BEGIN, "tool_call_name" if short else "function"),
            (special.TOOL_SEP, "tool_call_arguments" if short else "tool_call_name\n```json\ntool_call_arguments\n```"),
            (special.TOOL_CALL_END, "{additional_tool_calls}"),
            (special.TOOL_CALLS_END, "\n\nWhere:\n"),
        ):
            out.control(token, "system")
            out.text(text, "system")
        out.text(
            "- `tool_call_name` must be an exact match to one of the available tools\n"
            "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
            "- For multiple tool calls, chain them directly without separators or spaces\n", "system",
        )  # fmt: skip


# ---------------------------------------------------------------------- what a message may be


def check_message(message: object, at: int) -> dict[str, Any]:
    """One message in one form: role, content (text), tool_calls, reasoning; DataError says which of them is wrong where.

    Content may be absent, null, text, or a list of text parts; arguments of a call an object or a string; a tool result needs no id.
    """
    place = f"messages[{at}]"
    if not isinstance(message, Mapping):
        raise DataError(f"{place} ({_short(message)}) must be an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        raise DataError(f"{place}.role ({_short(role)}) must be one of {', '.join(ROLES)}")
    calls = message.get("tool_calls") or []
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise DataError(f"{place}.tool_calls ({_short(calls)}) must be a list")
    if calls and role != "assistant":
        raise DataError(f"{place}.tool_calls belong to an assistant's message, not to role {role!r}")
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    content = _content(message.get("content"), place)
    if role == "user" and message.get("content") is None:
        raise DataError(f"{place}.content is missing; a user's message needs a text or a list of text parts")
    return {
        "role": "system" if role == "developer" else role,
        "content": content,
        "tool_calls": [_checked_call(call, f"{place}.tool_calls[{number}]") for number, call in enumerate(calls)],
        "reasoning": _text(reasoning, f"{place}.reasoning_content"),
    }


def check_tool(tool: object, at: int) -> dict[str, Any]:
    """Name, description and parameters (a JSON schema) of one function; DataError for anything else."""
    function = tool.get("function") if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name.strip() or name != name.strip() or "\n" in name:
        raise DataError(f'tools[{at}] ({_short(tool)}) must be {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}')
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping):
        raise DataError(f"tools[{at}].function.parameters ({_short(parameters)}) must be a JSON schema object")
    description = _text(function.get("description") or "", f"tools[{at}].function.description")
    return {"name": _text(name, f"tools[{at}].function.name"), "description": description, "parameters": dict(parameters)}


def _content(content: object, place: str) -> str:
    if content is None:
        return ""
    if isinstance(content, list):
        texts = []
        for number, part in enumerate(content):
            if not isinstance(part, Mapping) or part.get("type") != "text":
                raise DataError(f"{place}.content[{number}] ({_short(part)}) must be a part of type text; this model reads text only")
            texts.append(_text(part.get("text"), f"{place}.content[{number}].text"))
        return "\n".join(texts)
    return _text(content, f"{place}.content")


def _text(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place} ({_short(value)}) must be text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{place} holds half of a surrogate pair, which is no Unicode text; correct its encoding")
    return value


def _checked_call(call: object, place: str) -> dict[str, str]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(f"{place} ({_short(call)}) must have a function with a name")
    arguments = function.get("arguments")
    if arguments is None:
        arguments = "{}"
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    kind = _text(call.get("type") or "function", f"{place}.type")
    return {"type": kind, "name": _text(function["name"], f"{place}.function.name"), "arguments": _text(arguments, f"{place}.arguments")}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def forced_call(tokenizer: Tokenizer, style: Style) -> list[int]:
    """Ids that open a call for the model to complete, from its name on; they stand behind the generation prompt."""
    out = Writer(tokenizer)
    out.control(special.TOOL_CALLS_BEGIN, "assistant")
    out.control(special.TOOL_CALL_BEGIN, "assistant")
    if style != "v3.1":
        out.text("function", "assistant")
        out.control(special.TOOL_SEP, "assistant")
    return out.ids


def learned(rendered: Rendered) -> Iterator[tuple[int, int]]:
    """Ranges of ids that the assistant itself writes, neighbours joined: what a training loss may look at."""
    edges = [(piece.start, piece.end) for piece in rendered.pieces if piece.role == "assistant" and piece.kind != "control"]
    start = edges[0][0] if edges else 0
    for (_, end), (following, _) in pairwise(edges):
        if end != following:
            yield start, end
            start = following
    if edges:
        yield start, edges[-1][1]
