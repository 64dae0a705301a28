"""uvicorn with an end that leaves nobody hanging: no new requests, time for the running ones, then a clear error for the rest."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from rorqual.server.app import Service, create_app
from rorqual.server.errors import ApiError
from rorqual.server.limits import Limits
from rorqual.server.served import Served
from rorqual.server.worker import SHUTTING_DOWN, Engine

_AFTERWARDS = 5.0  # seconds for the error answers to leave


class Server(uvicorn.Server):
    """Serves `service`; `ready` is called once it listens."""

    def __init__(self, config: uvicorn.Config, service: Service, grace: float, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._grace, self._ready = service, grace, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts listening, and says so."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the end, a second Ctrl-C cuts it short; neither is raised again, since stopping is no failure."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuses what comes, waits up to `grace` seconds for what runs, and fails what is left with 503."""
        worker = self._service.worker
        worker.draining = True

        async def fail_later() -> None:
            await asyncio.sleep(self._grace)
            worker.fail_all(ApiError(503, SHUTTING_DOWN, code="shutting_down"))

        late = asyncio.ensure_future(fail_later())
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await late


def run(
    engine: Engine, served: Served, limits: Limits, listener: socket.socket, grace: float, ready: Callable[[], None], *, rl: bool = False,
) -> None:  # fmt: skip
    """Serves on a bound socket until SIGINT or SIGTERM; with `rl` a trainer may load weights (server.rl)."""
    app = create_app(engine, served, limits)
    if rl:
        from rorqual.server.rl import add_routes

        add_routes(app, engine)  # type: ignore[arg-type]
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="on", server_header=False, date_header=False,
        timeout_graceful_shutdown=int(grace + _AFTERWARDS) + 1,
    )  # fmt: skip
    Server(config, app.state.service, grace, ready).run([listener])
