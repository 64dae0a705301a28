"""From tokens to OpenAI's objects, streamed and whole by the same code: a whole answer is the fold of its chunks (field cases F23, F24, F26)."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rorqual.errors import TokenizerError
from rorqual.inference.params import SamplingParams
from rorqual.inference.stops import StopStream
from rorqual.server.served import Served
from rorqual.tokenizer.bpe import Tokenizer
from rorqual.tokenizer.parse import Answer, Event, StreamParser

FLOOR = -9999.0
"""Stands for a log-probability of minus infinity, which JSON cannot say."""


def dumps(value: object) -> str:
    """Strict JSON, text as it is."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def event(value: object) -> bytes:
    """One server-sent event."""
    return f"data: {dumps(value)}\n\n".encode()


class Choice:
    """One choice on its way: a parser, what it gave so far, and its counts."""

    def __init__(
        self, served: Served, params: SamplingParams, index: int, *, tools: bool, reasoning: bool, plain: bool, special: bool
    ) -> None:
        tokenizer = served.tokenizer
        self.index, self._ends = index, served.stop_ids | set(params.stop_token_ids)
        stop = StopStream(_safe_bytes(tokenizer), params.stop, params.include_stop_str_in_output) if params.stop else None
        style = "plain" if plain else served.style
        self.parser = StreamParser(style, tokenizer, tools=tools, reasoning=reasoning, stop=stop, special_tokens=special)
        self.answer = Answer()
        self.token_ids: list[int] = []
        self.logprobs: list[Any] = []
        self.finish_reason: str | None = None
        self.accepted = 0

    def take(self, output: Any) -> list[Event]:
        """A step's tokens; an end token is counted and not shown."""
        ids, reason = list(output.new_token_ids), output.finish_reason
        self.token_ids += ids
        self.logprobs += output.new_logprobs or []
        self.accepted += max(0, len(ids) - 1)
        events = self.parser.feed(ids[:-1] if reason == "stop" and ids and ids[-1] in self._ends else ids)
        if reason is not None:
            events += self.parser.finish()
            self.finish_reason = "tool_calls" if reason == "stop" and self.parser.num_calls else reason
        self.answer.add(events)
        return events


def _safe_bytes(tokenizer: Tokenizer) -> Any:
    def token_bytes(number: int) -> bytes:
        try:
            return tokenizer.token_bytes(number)
        except TokenizerError:
            return b""

    return token_bytes


@dataclass
class Reply:
    """One HTTP request's answer. `prompts` are its prompts' ids; choice p * n + i is choice i of prompt p."""

    served: Served
    params: SamplingParams
    prompts: Sequence[Sequence[int]]
    object: str
    tools: bool = False
    reasoning: bool = False
    special: bool = False
    return_token_ids: bool = False
    drafts: bool = False
    prefill: Sequence[int] = ()
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    choices: list[Choice] = field(default_factory=list)

    def __post_init__(self) -> None:
        chat = self.object == "chat.completion"
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        for index in range(len(self.prompts) * self.params.n):
            choice = Choice(
                self.served, self.params, index, tools=self.tools, reasoning=self.reasoning, plain=not chat, special=self.special
            )
            self.first = choice.parser.feed(self.prefill)
            choice.answer.add(self.first)
            self.choices.append(choice)

    def choice(self, prompt: int, index: int) -> Choice:
        """The choice that an engine's output belongs to."""
        return self.choices[prompt * self.params.n + index]

    def usage(self) -> dict[str, Any]:
        """Token counts of everything so far; every choice's tokens count, reasoning and end tokens included."""
        prompt = sum(map(len, self.prompts))
        made = sum(len(choice.token_ids) for choice in self.choices)
        details = {
            "reasoning_tokens": sum(choice.parser.reasoning_tokens for choice in self.choices),
            "accepted_prediction_tokens": sum(choice.accepted for choice in self.choices),
        }
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made, "completion_tokens_details": details}

    def envelope(self, choices: list[Any], *, chunk: bool) -> dict[str, Any]:
        """The object around choices."""
        kind = f"{self.object}.chunk" if chunk and self.object == "chat.completion" else self.object
        return {"id": self.id, "object": kind, "created": self.created, "model": self.served.name, "choices": choices}

    # ------------------------------------------------------------------ chat

    def opening(self, choice: Choice) -> dict[str, Any]:
        """A chat choice's first chunk."""
        return {"index": choice.index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def chat_chunk(self, choice: Choice, output: Any, events: Sequence[Event]) -> dict[str, Any]:
        """A step's chunk of a chat choice."""
        delta: dict[str, Any] = {}
        for one in events:
            if one.kind == "reasoning":
                delta["reasoning_content"] = delta.get("reasoning_content", "") + one.text
            elif one.kind == "content":
                delta["content"] = delta.get("content", "") + one.text
            elif one.kind == "call":
                function = {"name": one.name, "arguments": ""}
                delta.setdefault("tool_calls", []).append({"index": one.index, "id": one.id, "type": "function", "function": function})
            elif one.kind == "arguments":
                calls = delta.setdefault("tool_calls", [])
                own = next((call for call in calls if call["index"] == one.index), None)
                if own is None:
                    calls.append({"index": one.index, "function": {"arguments": one.text}})
                else:
                    own["function"]["arguments"] += one.text
        out = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": choice.finish_reason}
        if output.new_logprobs is not None:
            out["logprobs"] = {"content": [self._chat_logprob(one) for one in output.new_logprobs]}
        if self.return_token_ids:
            out["token_ids"] = list(output.new_token_ids)
        return out

    def chat_choice(self, choice: Choice) -> dict[str, Any]:
        """A whole chat choice."""
        answer = choice.answer
        calls = [{"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in answer.calls]
        message: dict[str, Any] = {"role": "assistant", "content": answer.content if answer.content or not calls else None, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if calls:
            message["tool_calls"] = calls
        out = {"index": choice.index, "message": message, "logprobs": None, "finish_reason": choice.finish_reason}
        if self.params.logprobs is not None:
            out["logprobs"] = {"content": [self._chat_logprob(one) for one in choice.logprobs]}
        if self.return_token_ids:
            out["token_ids"] = choice.token_ids
        return out

    def _chat_logprob(self, one: Any) -> dict[str, Any]:
        own = self._token(one.token_id, one.logprob)
        return own | {"top_logprobs": [self._token(number, value) for number, value in one.top]}

    def _token(self, number: int, value: float) -> dict[str, Any]:
        data = _safe_bytes(self.served.tokenizer)(number)
        return {"token": data.decode("utf-8", "replace"), "logprob": max(value, FLOOR), "bytes": list(data)}

    # ------------------------------------------------------------------ completions

    def text_logprobs(self, found: Sequence[Any], start: int = 0) -> dict[str, Any]:
        """The old form; None stands for a prompt's first token, which has no probability."""
        tokens, values, tops, offsets = [], [], [], []
        for one in found:
            text = "" if one is None else self._token(one.token_id, 0.0)["token"]
            tokens.append(text)
            values.append(None if one is None else max(one.logprob, FLOOR))
            tops.append(None if one is None else {self._token(number, 0.0)["token"]: max(value, FLOOR) for number, value in one.top})
            offsets.append(start)
            start += len(text)
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def text_chunk(self, choice: Choice, output: Any, events: Sequence[Event]) -> dict[str, Any]:
        """A step's chunk of a completion."""
        text = "".join(one.text for one in events if one.kind == "content")
        out: dict[str, Any] = {"index": choice.index, "text": text, "logprobs": None, "finish_reason": choice.finish_reason}
        if output.new_logprobs is not None:
            out["logprobs"] = self.text_logprobs(output.new_logprobs, len(choice.answer.content) - len(text))
        if self.return_token_ids:
            out["token_ids"] = list(output.new_token_ids)
        return out

    def text_choice(self, choice: Choice, echo: bool, prompt_logprobs: Sequence[Any] | None, hide: bool) -> dict[str, Any]:
        """A whole completion; `echo` puts the prompt before it, `hide` leaves the answer out."""
        prompt = list(self.prompts[choice.index // self.params.n])
        text = "" if hide else choice.answer.content
        out: dict[str, Any] = {
            "index": choice.index,
            "text": text,
            "logprobs": None,
            "finish_reason": "length" if hide else choice.finish_reason,
        }
        if self.params.logprobs is not None:
            out["logprobs"] = self.text_logprobs([] if hide else choice.logprobs)
        if echo:
            out["text"] = self.served.tokenizer.decode(prompt) + text
            if self.params.logprobs is not None:
                before = list(prompt_logprobs) if prompt_logprobs is not None else [None] * len(prompt)
                out["logprobs"] = self.text_logprobs([*before, *([] if hide else choice.logprobs)])
                if before and before[0] is None:
                    out["logprobs"]["tokens"][0] = self._token(prompt[0], 0.0)["token"]
                    shift = len(out["logprobs"]["tokens"][0])
                    out["logprobs"]["text_offset"][1:] = [at + shift for at in out["logprobs"]["text_offset"][1:]]
        if self.return_token_ids:
            out["prompt_token_ids"] = prompt
            out["token_ids"] = [] if hide else choice.token_ids
        return out


@dataclass(frozen=True)
class OneToken:
    """One token of a step, as an output of its own."""

    new_token_ids: list[int]
    new_logprobs: list[Any] | None
    finish_reason: str | None


def single(output: Any) -> list[tuple[OneToken, bool]]:
    """A step's tokens one by one, and whether each was an accepted draft: all but the last, which is the model's own."""
    ids, logprobs = output.new_token_ids, output.new_logprobs
    last = len(ids) - 1
    return [
        (OneToken([number], None if logprobs is None else [logprobs[at]], output.finish_reason if at == last else None), at < last)
        for at, number in enumerate(ids)
    ] or [(OneToken([], None if logprobs is None else [], output.finish_reason), False)]
