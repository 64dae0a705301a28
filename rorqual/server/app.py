"""The HTTP interface: OpenAI's completions, models, health, metrics, tokenize and detokenize, and the chat page.

    app = create_app(engine, served, Limits(api_keys=("secret",)))

A client that leaves has its request aborted at the engine's next step, streamed or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from rorqual.server import requests as asked
from rorqual.server.answers import Reply, dumps, event, single
from rorqual.server.errors import ApiError
from rorqual.server.limits import Gate, Limits, as_api_error
from rorqual.server.metrics import Metrics
from rorqual.server.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from rorqual.server.served import Served
from rorqual.server.worker import Engine, Ticket, Worker

_PAGE = Path(__file__).parent / "page"
_POLICY = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"  # fmt: skip
_LONG_BODY = 32_768


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(dumps(value), status, headers, media_type="application/json")


class EventStream(Response):
    """Sends what an iterator gives until it ends or the client leaves; either way the iterator is closed."""

    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        super().__init__(None, 200, {"cache-control": "no-cache", "x-accel-buffering": "no"}, "text/event-stream")
        del self.headers["content-length"]
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await _unless_gone(receive, self._send(send))
        await self._parts.aclose()  # type: ignore[attr-defined]

    async def _send(self, send: Send) -> None:
        with contextlib.suppress(OSError):  # the client has left
            async for part in self._parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _unless_gone(receive: Receive, work: Any) -> Any:
    """The work's result; None, and the work cancelled, when the client leaves first."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await tasks[0]


class Service:
    """What the routes share: engine thread, model, gate and figures."""

    def __init__(self, engine: Engine, served: Served, limits: Limits) -> None:
        self.served, self.gate = served, Gate(limits)
        self.worker = Worker(engine, limits.queue_limit, limits.request_seconds)
        self.metrics = Metrics(lambda: engine.stats, served.name)
        self.started = int(time.time())

    async def read(self, request: Request, model: type[BaseModel]) -> Any:
        """A request's body, checked."""
        self.gate.enter(request)
        body = asked.checked(model, await self.gate.body(request))
        asked.check_model(self.served, body.model)  # type: ignore[attr-defined]
        return body

    # ------------------------------------------------------------------ completions

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body: ChatRequest = await self.read(request, ChatRequest)
        use = asked.tool_use(self.served, body)
        options = dict(body.chat_template_kwargs or {})
        if use.forced:
            options["thinking"] = False
        rendered = await _aside(
            len(body.messages) > 50 or int(request.headers.get("content-length", 0)) > _LONG_BODY,
            lambda: asked.conversation(self.served, body.messages, use.tools, body.add_generation_prompt, options),
        )
        params = asked.chat_params(body, use.grammar)
        prompt = [*rendered.ids, *use.forced]
        asked.check_prompt(self.served, prompt, params.max_tokens)
        reply = Reply(
            self.served, params, [prompt], "chat.completion", tools=bool(use.tools), reasoning=rendered.reasoning, prefill=use.forced,
            special=body.skip_special_tokens is False, return_token_ids=bool(body.return_token_ids), drafts=bool(body.return_drafts),
        )  # fmt: skip
        return await self._answer(request, body, reply)

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions."""
        body: CompletionRequest = await self.read(request, CompletionRequest)
        long = int(request.headers.get("content-length", 0)) > _LONG_BODY
        prompts = await _aside(long, lambda: asked.prompts(self.served, body.prompt))
        params = asked.completion_params(body)
        for ids in prompts:
            asked.check_prompt(self.served, ids, params.max_tokens)
        if body.stream and body.echo:
            raise ApiError(400, "echo is not streamed; ask for it without stream", param="echo")
        reply = Reply(
            self.served, params, prompts, "text_completion", special=body.skip_special_tokens is False,
            return_token_ids=bool(body.return_token_ids), drafts=bool(body.return_drafts),
        )  # fmt: skip
        return await self._answer(request, body, reply)

    async def _answer(self, request: Request, body: Any, reply: Reply) -> Response:
        ticket = await self.worker.submit(reply.prompts, reply.params)
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            return EventStream(self._stream(ticket, reply, usage))
        whole = await _unless_gone(request.receive, self._whole(ticket, reply, body))
        return Response(status_code=499) if whole is None else _json(whole)

    async def _whole(self, ticket: Ticket, reply: Reply, body: Any) -> dict[str, Any]:
        watch, finished = self.metrics.begin(sum(map(len, reply.prompts))), False
        scores: dict[int, Any] = {}
        try:
            async for prompt, output in ticket.outputs():
                choice = reply.choice(prompt, output.index)
                choice.take(output)
                watch.tokens(len(output.new_token_ids))
                found = getattr(output, "prompt_logprobs", None)
                if found is not None:
                    scores[prompt] = found
                if output.finish_reason is not None:
                    watch.choice(output.finish_reason)
            finished = True
        finally:
            ticket.close()
            watch.end(finished)
        if reply.object == "chat.completion":
            choices = [reply.chat_choice(choice) for choice in reply.choices]
        else:
            hide = body.max_tokens == 0
            choices = [reply.text_choice(one, bool(body.echo), scores.get(one.index // reply.params.n), hide) for one in reply.choices]
        return reply.envelope(choices, chunk=False) | {"usage": reply.usage()}

    async def _stream(self, ticket: Ticket, reply: Reply, usage: bool) -> AsyncIterator[bytes]:
        extra: dict[str, Any] = {"usage": None} if usage else {}
        chat = reply.object == "chat.completion"
        watch, finished = self.metrics.begin(sum(map(len, reply.prompts))), False
        try:
            for choice in reply.choices if chat else ():
                yield event(reply.envelope([reply.opening(choice)], chunk=True) | extra)
            async for prompt, output in ticket.outputs():
                choice = reply.choice(prompt, output.index)
                watch.tokens(len(output.new_token_ids))
                for part, draft in single(output) if reply.drafts else [(output, False)]:
                    events = choice.take(part)
                    made = (reply.chat_chunk if chat else reply.text_chunk)(choice, part, events)
                    if reply.drafts:
                        made["draft"] = draft
                        choice.accepted += draft
                    yield event(reply.envelope([made], chunk=True) | extra)
                if output.finish_reason is not None:
                    watch.choice(output.finish_reason)
            finished = True
            if usage:
                yield event(reply.envelope([], chunk=True) | {"usage": reply.usage()})
            yield b"data: [DONE]\n\n"
        except ApiError as error:
            self.metrics.refused(error.status)
            yield event(error.body)
        finally:
            ticket.close()
            watch.end(finished)

    # ------------------------------------------------------------------ the rest

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize."""
        body: TokenizeRequest = await self.read(request, TokenizeRequest)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give prompt or messages, one of them", param="prompt")
        if body.messages is not None:
            options = body.chat_template_kwargs or {}
            ids = asked.conversation(self.served, body.messages, body.tools, body.add_generation_prompt, options).ids
        else:
            ids = asked.text_ids(self.served, body.prompt or "", body.add_special_tokens is not False) if body.prompt else []
        out: dict[str, Any] = {"count": len(ids), "max_model_len": self.served.max_model_len, "tokens": ids, "token_strs": None}
        if body.return_token_strs:
            out["token_strs"] = [self.served.tokenizer.decode([number]) for number in ids]
        return _json(out)

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize."""
        body: DetokenizeRequest = await self.read(request, DetokenizeRequest)
        wrong = next((number for number in body.tokens if not 0 <= number < self.served.vocab_size), None)
        if wrong is not None:
            raise ApiError(400, f"token id {wrong} is outside the vocabulary (0 to {self.served.vocab_size - 1})", param="tokens")
        return _json({"prompt": self.served.tokenizer.decode(body.tokens)})

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        self.gate.enter(request)
        model = {"id": self.served.name, "object": "model", "created": self.started, "owned_by": "rorqual"}
        return _json({"object": "list", "data": [model | {"max_model_len": self.served.max_model_len}]})

    async def health(self, request: Request) -> Response:
        """GET /health: whether the engine's thread runs."""
        return Response(status_code=200 if self.worker.alive else 503)

    async def ready(self, request: Request) -> Response:
        """GET /ready: whether new requests are taken."""
        return Response(status_code=200 if self.worker.alive and not self.worker.draining else 503)

    async def figures(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")


async def _aside(long: bool, work: Callable[[], Any]) -> Any:
    """Runs work that may take long in a thread, so that others' streams go on."""
    return await asyncio.to_thread(work) if long else work()


def create_app(engine: Engine, served: Served, limits: Limits | None = None) -> FastAPI:
    """The application over an engine; `app.state.service` holds its parts. The engine's thread runs while the application does."""
    service = Service(engine, served, limits or Limits())

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        service.worker.draining = True
        service.worker.stop()

    app = FastAPI(title="Rorqual", version="1", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service
    _routes(app, service)

    def told(error: ApiError) -> Response:
        service.metrics.refused(error.status)
        return _json(error.body, error.status, error.headers)

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return told(error)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        return told(as_api_error(error))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return told(ApiError(500, "the server failed on this request", code="internal_error"))

    return app


def _routes(app: FastAPI, service: Service) -> None:
    posts: list[tuple[str, Callable[[Request], Awaitable[Response]], type[BaseModel]]] = [
        ("/v1/chat/completions", service.chat, ChatRequest), ("/v1/completions", service.complete, CompletionRequest),
        ("/tokenize", service.tokenize, TokenizeRequest), ("/detokenize", service.detokenize, DetokenizeRequest),
    ]  # fmt: skip
    problem = {"description": "refused", "content": {"application/json": {"schema": {"type": "object", "required": ["error"]}}}}
    for path, route, model in posts:
        body = {"required": True, "content": {"application/json": {"schema": body_schema(model)}}}
        responses: dict[int | str, Any] = {status: problem for status in (400, 401, 403, 404, 413, 429, 501, 503)}
        app.add_api_route(path, route, methods=["POST"], response_class=Response, responses=responses, openapi_extra={"requestBody": body})
    for path, route in (
        ("/v1/models", service.models),
        ("/health", service.health),
        ("/ready", service.ready),
        ("/metrics", service.figures),
    ):
        app.add_api_route(path, route, methods=["GET"], response_class=Response, responses={401: problem, 403: problem, 429: problem})
    kinds = {"index.html": "text/html", "chat.css": "text/css", "chat.js": "text/javascript"}
    for name, kind in kinds.items():
        content = (_PAGE / name).read_bytes()
        headers = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}

        async def page(content: bytes = content, kind: str = kind, headers: dict[str, str] = headers) -> Response:
            return Response(content, media_type=f"{kind}; charset=utf-8", headers=headers)

        app.add_route("/" if name == "index.html" else f"/{name}", _static(page), methods=["GET"], include_in_schema=False)


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The model's JSON schema with its definitions put where they are used, as an OpenAPI document needs it."""
    whole = model.model_json_schema()
    definitions = whole.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return inlined(definitions[value["$ref"].rpartition("/")[2]])
            return {name: inlined(inner) for name, inner in value.items()}
        return [inlined(inner) for inner in value] if isinstance(value, list) else value

    return dict(inlined(whole))


def _static(page: Callable[[], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return await page()

    return answer
