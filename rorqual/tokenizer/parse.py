"""What a model wrote, read token by token: reasoning, text and tool calls (field cases F20, F21 and F23).

One machine serves streamed and whole answers: a whole answer is the fold of its stream, so the two cannot differ. Whether an answer
begins inside the reasoning is told by the prompt (`chat.Rendered.reasoning`), never guessed from the answer. Reasoning tags are
looked for in the text, wherever tokens cut it; the tokens of a tool call are known by their ids, so text that only looks like one
stays text. What is no whole call becomes text; nothing is lost.
"""

from __future__ import annotations

import codecs
import re
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from rorqual.errors import TokenizerError
from rorqual.tokenizer import special
from rorqual.tokenizer.bpe import Tokenizer

Kind = Literal["reasoning", "content", "call", "arguments", "end"]

_TOOL_TOKENS: Final = (
    special.TOOL_CALLS_BEGIN, special.TOOL_CALLS_END, special.TOOL_CALL_BEGIN, special.TOOL_CALL_END, special.TOOL_SEP,
)  # fmt: skip
_SILENT: Final = (special.BOS, special.EOS, special.PAD)
_NAME: Final = re.compile(r"[^\s`\"'{}()<>]{1,256}")
_FENCE_END: Final = re.compile(r"\s*`{0,3}\s*\Z")
_SPACE_END: Final = re.compile(r"\s*\Z")
_FENCE: Final = re.compile(r"\s*```[a-z]*[ \t]*\n")
_MAYBE_FENCE: Final = re.compile(r"\s*(?:`{0,2}|```[a-z]*[ \t]*)\Z")


@dataclass(frozen=True)
class Event:
    """A piece of an answer. `call` opens tool call number `index` with `id` and `name`; `arguments` continues it; `end` comes once."""

    kind: Kind
    text: str = ""
    index: int = 0
    id: str = ""
    name: str = ""


@dataclass
class Call:
    """A tool call; `arguments` is the model's own text, which should be JSON."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class Answer:
    """The fold of a stream of events."""

    reasoning: str = ""
    content: str = ""
    calls: list[Call] = field(default_factory=list)

    def add(self, events: Iterable[Event]) -> Answer:
        """Takes further events; returns itself."""
        for event in events:
            if event.kind == "reasoning":
                self.reasoning += event.text
            elif event.kind == "content":
                self.content += event.text
            elif event.kind == "call":
                self.calls.append(Call(event.id, event.name))
            elif event.kind == "arguments":
                self.calls[event.index].arguments += event.text
        return self


class CertainText(Protocol):
    """Holds text back that may turn out to be a stop string (inference.stops.StopStream)."""

    def add(self, token_ids: Iterable[int], /) -> str:
        """The text that these tokens make certain."""
        ...

    def finish(self) -> str:
        """What was held back, at the end."""
        ...


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


class StreamParser:
    """Feeds on the ids of one answer. Styles as in `chat.render`, `template` (foreign: reasoning tags only) and `plain` (text only).

    tools: whether the request has any. reasoning: whether the prompt left `<think>` open; if not, an answer that begins with the
    tag opens it itself. stop: what holds back and cuts at stop strings. special_tokens: show BOS, EOS and PAD, which are silent
    otherwise. new_id: names tool calls.
    """

    def __init__(
        self,
        style: str,
        tokenizer: Tokenizer,
        *,
        tools: bool = False,
        reasoning: bool = False,
        stop: CertainText | None = None,
        special_tokens: bool = False,
        new_id: Callable[[], str] = _new_id,
    ) -> None:
        self._fenced_style, self._bytes, self._stop, self._new_id = style != "v3.1", tokenizer.token_bytes, stop, new_id
        ids = {name: tokenizer.token_to_id(name) for name in (*_TOOL_TOKENS, *_SILENT)}
        names = {number: name for name, number in ids.items() if number is not None}
        self._calls = {number: name for number, name in names.items() if name in _TOOL_TOKENS} if tools and style != "plain" else {}
        self._silent = set() if special_tokens else {number for number, name in names.items() if name in _SILENT}
        if not special_tokens and tokenizer.eos_id is not None:
            self._silent.add(tokenizer.eos_id)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._segments: deque[tuple[str, str]] = deque()  # (text, what it is: "", "silent" or a tool token)
        self._certain = self._released = 0
        self._state = "content" if style == "plain" else "reasoning" if reasoning else "start"
        self._skip = "\n" if reasoning else ""  # characters dropped until another comes
        self._held, self._raw = "", ""
        self._events: list[Event] = []
        self.num_calls = 0
        """Tool calls opened so far."""
        self.reasoning_tokens = 0
        """Tokens fed while the answer was reasoning."""

    @property
    def reasoning(self) -> bool:
        """Whether the answer is in its reasoning."""
        return self._state == "reasoning"

    def feed(self, token_ids: Sequence[int]) -> list[Event]:
        """What these tokens make certain."""
        for number in token_ids:
            self._token(number)
            self.reasoning_tokens += self.reasoning
        return self._taken()

    def finish(self) -> list[Event]:
        """What was held back, and the end."""
        rest = self._decoder.decode(b"", final=True)
        if rest:
            self._segments.append((rest, ""))
        if self._stop is None:
            self._certain += len(rest)
        else:
            self._certain += len(self._stop.finish())
        self._release()
        self._close(whole=False)
        self._events.append(Event("end"))
        return self._taken()

    def _taken(self) -> list[Event]:
        """The events so far, neighbours of one kind joined."""
        joined: list[Event] = []
        for event in self._events:
            last = joined[-1] if joined else None
            if last and last.kind == event.kind != "call" and last.index == event.index:
                joined[-1] = Event(event.kind, last.text + event.text, event.index)
            else:
                joined.append(event)
        self._events = []
        return joined

    # ------------------------------------------------------------------ tokens to certain text

    def _token(self, number: int) -> None:
        try:
            data = self._bytes(number)
        except TokenizerError:  # an id that is no token
            data = b""
        what = self._calls.get(number) or ("silent" if number in self._silent else "")
        text = self._decoder.decode(data)
        if what:
            own = data.decode("utf-8", "replace")
            if text != own:  # a character before it was cut
                self._segments.append((text[: len(text) - len(own)], ""))
            self._segments.append((own, what))
        elif text:
            self._segments.append((text, ""))
        self._certain += len(text) if self._stop is None else len(self._stop.add([number]))
        self._release()

    def _release(self) -> None:
        while self._segments and self._released < self._certain:
            text, what = self._segments.popleft()
            room = self._certain - self._released
            if what and len(text) > room:
                self._segments.appendleft((text, what))
                return
            if len(text) > room:
                self._segments.appendleft((text[room:], what))
                text = text[:room]
            self._released += len(text)
            if what == "":
                self._text(text)
            elif what != "silent":
                self._control(what)

    # ------------------------------------------------------------------ certain text to events

    def _emit(self, kind: Kind, text: str) -> None:
        if text:
            self._events.append(Event(kind, text, max(0, self.num_calls - 1) if kind == "arguments" else 0))

    def _text(self, text: str) -> None:
        """Text goes to the state; what the state leaves over goes to the next one."""
        while text:
            if self._skip:
                text = text.lstrip(self._skip)
                if not text:
                    return
                self._skip = ""
            text = getattr(self, f"_in_{self._state}")(self._held + text)

    def _in_start(self, text: str) -> str:
        self._held = ""
        begin = text.lstrip()
        if begin.startswith(special.THINK_BEGIN):
            self._state, self._skip = "reasoning", "\n"
            return begin[len(special.THINK_BEGIN) :]
        if special.THINK_BEGIN.startswith(begin):
            self._held = text
            return ""
        self._state = "content"
        return text

    def _in_reasoning(self, text: str) -> str:
        self._held = ""
        at = text.find(special.THINK_END)
        if at >= 0:
            self._emit("reasoning", text[:at].rstrip("\n"))
            self._state, self._skip = "content", "\n"
            return text[at + len(special.THINK_END) :]
        keep = next((n for n in range(len(special.THINK_END) - 1, 0, -1) if text.endswith(special.THINK_END[:n])), 0)
        sure = text[: len(text) - keep].rstrip("\n")
        self._emit("reasoning", sure)
        self._held = text[len(sure) :]
        return ""

    def _in_content(self, text: str) -> str:
        self._emit("content", text)
        return ""

    def _in_between(self, text: str) -> str:
        """Around calls white space is dropped, other text is the answer's."""
        text = text.lstrip()
        if text:
            self._state = "content"
        return text

    def _in_head(self, text: str) -> str:
        """From the call's first token to the separator; V3 writes the type here, V3.1 the name."""
        self._held, self._raw = "", self._raw + text
        return ""

    def _in_name(self, text: str) -> str:
        self._held = ""
        name, newline, rest = text.partition("\n")
        if not newline:
            self._held = text
            if len(text) > 512:
                self._malformed()
            return ""
        self._raw += name + newline
        if self._open(name):
            self._state = "fence"
        return rest

    def _in_fence(self, text: str) -> str:
        self._held = ""
        fence = _FENCE.match(text)
        if fence:
            self._state = "fenced"
            return text[fence.end() :]
        if _MAYBE_FENCE.match(text):
            self._held = text
            return ""
        self._state = "bare"
        return text

    def _in_fenced(self, text: str) -> str:
        return self._arguments(text, _FENCE_END)

    def _in_bare(self, text: str) -> str:
        return self._arguments(text, _SPACE_END)

    def _arguments(self, text: str, end: re.Pattern[str]) -> str:
        found = end.search(text, max(0, len(text) - 64)) or end.search(text)
        cut = found.start() if found else len(text)
        self._emit("arguments", text[:cut])
        self._raw += text[:cut]
        self._held = text[cut:]
        return ""

    def _open(self, name: str) -> bool:
        """Opens a call if the name can be one; otherwise its text becomes content."""
        if not _NAME.fullmatch(name.strip()):
            self._malformed()
            return False
        self._events.append(Event("call", "", self.num_calls, self._new_id(), name.strip()))
        self.num_calls += 1
        self._raw = ""  # from here on: the arguments
        return True

    def _malformed(self) -> None:
        self._emit("content", self._raw + self._held)
        self._raw = self._held = ""
        self._state = "broken"

    def _in_broken(self, text: str) -> str:
        self._held = ""
        self._emit("content", text)
        return ""

    def _control(self, token: str) -> None:
        in_call = self._state in ("head", "name", "fence", "fenced", "bare", "broken")
        if token == special.TOOL_SEP and self._state == "head":
            self._separate()
        elif token in (special.TOOL_SEP, special.TOOL_CALL_END) and not (in_call and token == special.TOOL_CALL_END):
            self._text(token)  # out of place: text
        elif token == special.TOOL_CALL_END:
            if self._state == "broken":
                self._emit("content", token)
            self._close(token)
        else:
            self._close()
            self._skip = ""
            self._state = "head" if token == special.TOOL_CALL_BEGIN else "between"
            self._raw = token if token == special.TOOL_CALL_BEGIN else ""

    def _separate(self) -> None:
        head = self._raw.removeprefix(special.TOOL_CALL_BEGIN)
        self._raw += special.TOOL_SEP
        if self._fenced_style:
            self._state = "name"
        elif self._open(head):
            self._state = "bare"

    def _close(self, token: str = "", whole: bool = True) -> None:
        """Ends what the state has under way: a call, or text that was held back. Not `whole`: the answer was cut here."""
        held, self._held = self._held, ""
        if self._state == "start":
            self._emit("content", held)
        elif self._state == "reasoning":
            self._emit("reasoning", held.rstrip("\n"))
        elif self._state == "name" and token and _NAME.fullmatch(held.strip()):
            self._open(held)
            self._emit("arguments", "{}")
        elif self._state in ("head", "name"):
            self._emit("content", self._raw + held + token)
        elif self._state in ("fence", "fenced", "bare"):
            rest = "" if self._state == "bare" or "```" in held else held.strip()
            self._emit("arguments", rest or ("{}" if whole and not self._raw else ""))
        self._raw, self._state = "", "between"
