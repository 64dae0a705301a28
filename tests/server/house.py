"""A server over the scripted engine, in one process, for tests: the answer is what the prompt asks to be said."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from rorqual.server.limits import Limits
from rorqual.server.served import Served
from tests.server.scripted import ScriptedEngine
from tests.tokenizer.samples import tokenizer

httpx = pytest.importorskip("httpx", reason="the server is asked over HTTP")
CONTEXT = 256
BYTE = {tokenizer().token_bytes(number): number for number in range(3, 259)}


def served(**changes: Any) -> Served:
    """The sample tokenizer's model."""
    return Served(
        **{"name": "tiny", "tokenizer": tokenizer(), "max_model_len": CONTEXT, "vocab_size": 512, "stop_ids": frozenset([1])} | changes
    )  # type: ignore[arg-type]


def saying(*texts: str, **options: Any) -> ScriptedEngine:
    """Choice i says texts[i], single bytes, and ends."""
    control = tokenizer().added_tokens

    def script(prompt: Sequence[int], choice: int) -> list[int]:
        ids = tokenizer().encode(texts[choice % len(texts)])
        return [n for number in ids for n in ([number] if number in control.values() else _bytes(number))] + [1]

    return ScriptedEngine(script, **options)


def _bytes(number: int) -> list[int]:
    return [BYTE[bytes([byte])] for byte in tokenizer().token_bytes(number)]


@contextlib.asynccontextmanager
async def house(engine: ScriptedEngine, limits: Limits | None = None, **changes: Any) -> AsyncIterator[Any]:
    """An httpx client of a running application; `client.service` is the server's inside."""
    from rorqual.server.app import create_app

    app = create_app(engine, served(**changes), limits)
    app.state.service.worker.start()
    try:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            client.service, client.app = app.state.service, app
            yield client
    finally:
        app.state.service.worker.stop()


def run(engine: ScriptedEngine, work: Callable[[Any], Awaitable[Any]], limits: Limits | None = None, **changes: Any) -> Any:
    """Runs `work(client)` against a server."""

    async def main() -> Any:
        async with house(engine, limits, **changes) as client:
            return await work(client)

    return asyncio.run(main())


def ask(engine: ScriptedEngine, path: str, body: Any, limits: Limits | None = None, **changes: Any) -> Any:
    """One POST; the response."""
    return run(engine, lambda client: client.post(path, json=body), limits, **changes)
