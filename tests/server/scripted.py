"""An engine that says what it is told to: answers by the prompt's last ids, some tokens a step, with the interface of inference.engine.Engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TokenLogprobs:
    """As inference.sampler.TokenLogprobs."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class StepOutput:
    """As inference.engine.StepOutput."""

    request_id: str
    index: int
    new_token_ids: list[int]
    new_logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None


@dataclass
class _Running:
    params: Any
    script: list[int]
    done: int = 0


@dataclass
class ScriptedEngine:
    """`script(prompt_ids, choice)` gives the answer's ids; `per_step` of them come a step, each step taking `delay` seconds."""

    script: Callable[[Sequence[int], int], list[int]]
    eos_id: int = 1
    per_step: int = 1
    delay: float = 0.0
    stats: dict[str, float] = field(default_factory=dict)
    running: dict[tuple[str, int], _Running] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    seen: list[tuple[list[int], Any]] = field(default_factory=list)
    prompts: dict[str, list[int]] = field(default_factory=dict)
    fail: str = ""

    def add_request(self, request_id: str, prompt_ids: Sequence[int], params: Any, *, deadline: float | None = None) -> None:
        """Takes a request."""
        self.seen.append((list(prompt_ids), params))
        self.prompts[request_id] = list(prompt_ids)
        for choice in range(params.n):
            self.running[request_id, choice] = _Running(params, self.script(prompt_ids, choice))

    def abort(self, request_id: str) -> None:
        """Drops a request."""
        self.aborted.append(request_id)
        self.running = {key: one for key, one in self.running.items() if key[0] != request_id}

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self.running)

    def step(self) -> list[StepOutput]:
        """Up to `per_step` tokens of every request."""
        time.sleep(self.delay)
        if self.fail:
            message, self.fail = self.fail, ""
            raise RuntimeError(message)
        out = []
        for (request_id, choice), one in list(self.running.items()):
            limit = one.params.max_tokens or 1000
            new = one.script[one.done : min(one.done + self.per_step, limit)]
            if self.eos_id in new and not one.params.ignore_eos:
                new = new[: new.index(self.eos_id) + 1]
            prompt = None
            if one.done == 0 and one.params.prompt_logprobs is not None:
                count = one.params.prompt_logprobs
                prompt = [None, *(_logprobs(number, count) for number in self.prompts[request_id][1:])]
            one.done += len(new)
            reason = "stop" if new[-1:] == [self.eos_id] and not one.params.ignore_eos else None
            reason = reason or ("length" if one.done >= min(limit, len(one.script)) else None)
            count = one.params.logprobs
            logprobs = None if count is None else [_logprobs(number, count) for number in new]
            out.append(StepOutput(request_id, choice, new, logprobs, reason, prompt))
            if reason:
                del self.running[request_id, choice]
        return out


def _logprobs(number: int, count: int) -> TokenLogprobs:
    return TokenLogprobs(number, -0.5, 1, tuple((number + step, -0.5 - step) for step in range(count)))
