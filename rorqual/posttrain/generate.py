"""Who answers when data is made or answers are compared: a model folder in this process, or an OpenAI-compatible server by URL.

    teacher = open_teacher("runs/expert")                               # or "http://localhost:8000/v1"
    for name, found in teacher.draw([("q1", messages)], Drawing(n=4)):  # as they end; drafts, or why there are none
        ...

A draft is a function of (weights, messages, seed, name, number), whoever else is asked (report section 5.1: domain experts generate the
data). A server that goes away is TeacherGone, raised after everything that did come has been handed out.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rorqual.errors import ConfigError, RorqualError, RunError, TokenizerError
from rorqual.eval.models import item_seed
from rorqual.inference.client import PASSING, Client, ServerError
from rorqual.inference.params import SamplingParams
from rorqual.posttrain.rollout import Answer, parse
from rorqual.tokenizer import chat, templates
from rorqual.tokenizer.special import THINK_BEGIN, THINK_END
from rorqual.train.records import number, whole

if TYPE_CHECKING:
    from rorqual.inference.engine import Engine
    from rorqual.tokenizer.bpe import Tokenizer

Messages = Sequence[Mapping[str, Any]]
_TOGETHER = 64  # questions in the engine at a time


class TeacherGone(RunError):
    """The teacher answers no more; what it gave before has been handed out."""


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn. `thinking` None: as the model's chat style does by itself."""

    n: int = 1
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 2048
    seed: int = 0
    thinking: bool | None = None

    def __post_init__(self) -> None:
        whole("n", self.n, 1)
        whole("max_tokens", self.max_tokens, 1)
        number("temperature", self.temperature, 0)
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p ({self.top_p}) must be above 0 and at most 1 (off)")
        if self.n > 1 and self.temperature == 0:
            raise ConfigError(f"n ({self.n}) asks for different answers, and temperature 0 makes them equal; use a temperature such as 0.6")


@dataclass(frozen=True)
class Draft:
    """One answer. `cut`: it ended at the length limit; `closed`: it came out of its reasoning; `tokens` counts all of it."""

    reasoning: str
    content: str
    cut: bool
    closed: bool
    tokens: int

    def answer(self, expects_reasoning: bool = False) -> Answer:
        """As reward components take it."""
        return Answer(
            [], [0] * self.tokens, self.cut, text=self.reasoning + self.content, reasoning=self.reasoning, content=self.content,
            closed=self.closed, expects_reasoning=expects_reasoning,
        )  # fmt: skip


Found = list[Draft] | str


class Teacher(Protocol):
    """Where drafts come from."""

    def describe(self) -> dict[str, Any]:
        """Facts for a manifest: what would make other drafts if it were other."""
        ...

    def draw(self, asked: Sequence[tuple[str, Messages]], how: Drawing) -> Iterator[tuple[str, Found]]:
        """(name, drafts) of each (name, messages) as they end; a text instead says why this one cannot be answered."""
        ...


def open_teacher(target: str, *, model: str | None = None, api_key: str | None = None, parallel: int = 8, weights: str = "fp32") -> Teacher:
    """A teacher out of a folder or a URL; `model` is its name at the server (None: the first that the server lists)."""
    if target.startswith(("http://", "https://")):
        client = Client(target, api_key=api_key)
        return ServerTeacher(client, model or first_model(client), parallel)
    from rorqual.inference.engine import Engine
    from rorqual.inference.prompts import end_ids
    from rorqual.posttrain.base import open_base

    base = open_base(Path(target))
    tokenizer = base.tokenizer()
    facts = {"kind": "folder", "path": str(Path(target).resolve()), "weights": base.fingerprint(), "tokenizer": tokenizer.fingerprint}
    engine = Engine(base.load(weights), tokenizer, end_ids=end_ids(base.tokenizer_folder, tokenizer))
    return FolderTeacher(engine, tokenizer, facts | {"dtype": weights})


def first_model(client: Client) -> str:
    """The first model that a server lists; TeacherGone where it does not answer, ConfigError where it lists none."""
    try:
        listed = client.get("/models").get("data")
    except ServerError as error:
        raise TeacherGone(f"the teacher cannot be asked: {error}; start it, or correct the URL") from None
    if not isinstance(listed, list) or not listed or not isinstance(listed[0], dict) or not isinstance(listed[0].get("id"), str):
        raise ConfigError(f"{client.url} lists no models; name one with --teacher-model")
    return str(listed[0]["id"])


class ByDomain:
    """An expert for each domain (report section 5.1). `domains` maps a question's name to its domain; teacher "*" takes all others'."""

    def __init__(self, teachers: Mapping[str, Teacher], domains: Mapping[str, str]) -> None:
        missing = sorted({one for one in domains.values() if one not in teachers and "*" not in teachers})
        if missing:
            raise ConfigError(
                f"no teacher for the domain {', '.join(missing)}; name one with --teacher DOMAIN=DIR, or one for all with --teacher DIR"
            )
        self._teachers, self._domains = teachers, domains

    def describe(self) -> dict[str, Any]:
        """What each teacher says of itself."""
        return {"kind": "by domain", "teachers": {name: teacher.describe() for name, teacher in sorted(self._teachers.items())}}

    def draw(self, asked: Sequence[tuple[str, Messages]], how: Drawing) -> Iterator[tuple[str, Found]]:
        """One teacher after the other, each over its own questions."""
        for name, teacher in self._teachers.items():
            own = [one for one in asked if (self._domains[one[0]] if self._domains[one[0]] in self._teachers else "*") == name]
            if own:
                yield from teacher.draw(own, how)


# ---------------------------------------------------------------------- a folder


class FolderTeacher:
    """The engine over a model in this process; up to 64 questions are decoded together."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, facts: Mapping[str, Any], style: str | None = None) -> None:
        self._engine, self._tokenizer, self._facts = engine, tokenizer, dict(facts)
        self.style = style or templates.style_of(tokenizer)
        self._lock = threading.Lock()

    def describe(self) -> dict[str, Any]:
        """Path, fingerprints and chat style."""
        return self._facts | {"style": self.style}

    def draw(self, asked: Sequence[tuple[str, Messages]], how: Drawing) -> Iterator[tuple[str, Found]]:
        """Drafts of each question as it ends. One call at a time has the engine; another thread's waits."""
        with self._lock:
            yield from self._draw(asked, how)

    def _draw(self, asked: Sequence[tuple[str, Messages]], how: Drawing) -> Iterator[tuple[str, Found]]:
        engine, limit = self._engine, self._engine.model.config.max_position_embeddings
        open_ones: dict[str, _Open] = {}
        waiting = iter(enumerate(asked))
        exhausted = False
        try:
            while True:
                while not exhausted and len(open_ones) < _TOGETHER:
                    at, (name, messages) = next(waiting, (-1, ("", ())))
                    if at < 0:
                        exhausted = True
                        break
                    try:
                        prompt = self._rendered(messages, how.thinking)
                    except TokenizerError as error:
                        raise ConfigError(f"this teacher cannot chat: {error}") from None
                    except RorqualError as error:
                        yield name, str(error)
                        continue
                    most = min(how.max_tokens, limit - len(prompt.ids))
                    if most < 1:
                        yield name, f"the prompt has {len(prompt.ids)} tokens, the teacher's context is {limit}"
                        continue
                    params = SamplingParams(
                        max_tokens=most, temperature=how.temperature, top_p=how.top_p, n=how.n, seed=item_seed(how.seed, name)
                    )
                    request = f"draft {at}"
                    engine.add_request(request, prompt.ids, params)
                    open_ones[request] = _Open(name, prompt.reasoning, [[] for _ in range(how.n)], {})
                if not engine.has_work:
                    return
                for out in engine.step():
                    one = open_ones[out.request_id]
                    one.tokens[out.index] += out.new_token_ids
                    if out.finish_reason is not None:
                        one.reasons[out.index] = out.finish_reason
                        if len(one.reasons) == how.n:
                            del open_ones[out.request_id]
                            yield one.name, [self._draft(one, choice) for choice in range(how.n)]
        finally:
            for request in open_ones:
                engine.abort(request)

    def _rendered(self, messages: Messages, thinking: bool | None) -> chat.Rendered:
        if self.style == "template":
            return templates.render_template(self._tokenizer.chat_template or "", list(messages), self._tokenizer, thinking=thinking)
        return chat.render(messages, self._tokenizer, style=self.style, thinking=thinking)  # type: ignore[arg-type]

    def _draft(self, one: _Open, choice: int) -> Draft:
        ids, cut = one.tokens[choice], one.reasons[choice] == "length"
        made = parse(Answer([], ids, cut), self._tokenizer, self.style, one.reasoning, self._engine.end_ids)
        return Draft(made.reasoning.strip("\n"), made.content.lstrip("\n"), cut, made.closed, len(ids))


@dataclass(frozen=True)
class _Open:
    name: str
    reasoning: bool
    tokens: list[list[int]]
    reasons: dict[int, str]


# ---------------------------------------------------------------------- a server


class _Odd(Exception):
    """An answer that lacks what was asked for."""


class ServerTeacher:
    """A model behind /v1/chat/completions, asked by `parallel` threads, one request for each draft with a seed of its own."""

    def __init__(self, client: Client, model: str, parallel: int = 8) -> None:
        self._client, self._model, self._parallel = client, model, max(1, parallel)

    def describe(self) -> dict[str, Any]:
        """URL and the model's name there; what weights these are the server does not say."""
        return {"kind": "server", "url": self._client.url, "model": self._model}

    def draw(self, asked: Sequence[tuple[str, Messages]], how: Drawing) -> Iterator[tuple[str, Found]]:
        """Drafts of each question as its last one comes. TeacherGone once the server fails for good, after what it still gave."""
        gone: ServerError | None = None
        with ThreadPoolExecutor(self._parallel) as pool:
            waiting: dict[Future[Found], str] = {}
            todo = iter(asked)
            try:
                while True:
                    while gone is None and len(waiting) < self._parallel and (one := next(todo, None)) is not None:
                        waiting[pool.submit(self._drafts, one[0], one[1], how)] = one[0]
                    if not waiting:
                        break
                    for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                        name = waiting.pop(done)
                        try:
                            found = done.result()
                        except ServerError as error:
                            gone = gone or error
                            continue
                        yield name, found
            finally:
                for future in waiting:
                    future.cancel()
        if gone is not None:
            raise TeacherGone(f"the teacher answers no more: {gone}")

    def _drafts(self, name: str, messages: Messages, how: Drawing) -> Found:
        try:
            return [self._draft(messages, how, item_seed(how.seed, f"{name}:{choice}")) for choice in range(how.n)]
        except ServerError as error:  # what is wrong with this question alone is no fault of the server's
            if error.status is None or error.status in PASSING or error.status == 200 or error.status in (401, 403, 404):
                raise
            return str(error)
        except _Odd as error:
            return str(error)

    def _draft(self, messages: Messages, how: Drawing, seed: int) -> Draft:
        body: dict[str, Any] = {
            "model": self._model, "messages": [dict(message) for message in messages], "max_tokens": how.max_tokens,
            "temperature": how.temperature, "top_p": how.top_p, "seed": seed,
        }  # fmt: skip
        if how.thinking is not None:
            body["chat_template_kwargs"] = {"thinking": how.thinking, "enable_thinking": how.thinking}
        reply = self._client.post("/chat/completions", body)
        choices = reply.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        message = first.get("message") if isinstance(first, dict) else None
        if not isinstance(first, dict) or not isinstance(message, dict):
            raise _Odd("the server's answer has no message")
        content = message.get("content") or ""
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        if not isinstance(content, str) or not isinstance(reasoning, str):
            raise _Odd("the server's answer has content that is no text")
        usage = reply.get("usage")
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        return _split(
            reasoning, content, first.get("finish_reason") == "length", tokens if isinstance(tokens, int) else len(content.split())
        )


def _split(reasoning: str, content: str, cut: bool, tokens: int) -> Draft:
    """A server's answer with its reasoning apart, whether the server parts it or leaves it between tags in the content."""
    closed = True
    if not reasoning and content.lstrip().startswith(THINK_BEGIN):
        reasoning, mark, content = content.lstrip()[len(THINK_BEGIN) :].partition(THINK_END)
        closed = bool(mark)
    elif reasoning and not content and cut:
        closed = False
    return Draft(reasoning.strip("\n"), content.lstrip("\n"), cut, closed, tokens)
