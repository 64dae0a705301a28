"""The engine's thread: requests go in through a queue, each step's tokens come back to the event loop in one call.

The engine is not thread-safe and its steps are long; HTTP must not wait for it. So the engine is touched by this thread alone. A
request that nobody reads any more is aborted at the next step.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from rorqual.errors import ConfigError, DataError, RorqualError
from rorqual.inference.params import SamplingParams
from rorqual.server.errors import ApiError, overloaded

SHUTTING_DOWN = "the server is shutting down; ask again later"


class StepOutput(Protocol):
    """What a step gave one choice of one request (inference.engine.StepOutput)."""

    request_id: str
    index: int
    new_token_ids: list[int]
    new_logprobs: Any
    finish_reason: str | None


class Engine(Protocol):
    """What the server needs of inference.engine.Engine."""

    @property
    def stats(self) -> Any:
        """Counters."""
        ...

    def add_request(self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams, *, deadline: float | None = None) -> None:
        """Takes a request, or raises."""
        ...

    def abort(self, request_id: str) -> None:
        """Forgets a request; unknown ones are no error."""
        ...

    def step(self) -> Sequence[Any]:
        """One step of all running requests."""
        ...


class Ticket:
    """One HTTP request's engine requests, one for each prompt; outputs come in the order they are made."""

    def __init__(self, worker: Worker, prompts: int, choices: int) -> None:
        self._worker, self._queue = worker, asyncio.Queue[tuple[int, Any] | ApiError]()
        self.ids = [f"req-{uuid.uuid4().hex}" for _ in range(prompts)]
        self._left = prompts * choices
        self._number = {request_id: number for number, request_id in enumerate(self.ids)}

    def deliver(self, output: Any) -> None:
        """On the event loop: an output, or the error that ends the request."""
        self._queue.put_nowait(output if isinstance(output, ApiError) else (self._number[output.request_id], output))

    async def outputs(self) -> AsyncIterator[tuple[int, Any]]:
        """(prompt number, step's output) until every choice has finished; ApiError when the engine gave up."""
        while self._left:
            item = await self._queue.get()
            if isinstance(item, ApiError):
                self._left = 0
                raise item
            self._left -= item[1].finish_reason is not None
            if not self._left:
                self._worker.forget(self)
            yield item

    def close(self) -> None:
        """Aborts what is not finished; safe to call at any time."""
        if self._worker.forget(self):
            self._worker.order(lambda engine: self._worker.abort(engine, self.ids))


class Worker:
    """Runs the engine from `start` to `stop`; `submit` and the rest belong to the event loop that started it."""

    def __init__(self, engine: Engine, queue_limit: int = 512, request_seconds: float | None = None) -> None:
        self.engine, self.queue_limit, self.request_seconds = engine, queue_limit, request_seconds
        self._orders: queue.SimpleQueue[Callable[[Engine], object] | None] = queue.SimpleQueue()
        self._tickets: dict[str, Ticket] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._active: dict[str, int] = {}  # the thread's own: choices that each request still waits for
        self.draining = False
        self.last_error: str | None = None

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def num_requests(self) -> int:
        """Requests that are running or waiting."""
        return len(self._tickets)

    def start(self) -> None:
        """Starts the thread; call it on the event loop."""
        self._loop = asyncio.get_running_loop()
        if not self.alive:
            self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Fails what is left and ends the thread."""
        self.fail_all(ApiError(503, SHUTTING_DOWN, code="shutting_down"))
        self._orders.put(None)
        if self._thread is not None:
            self._thread.join(timeout=30)

    def fail_all(self, error: ApiError) -> None:
        """Ends every request with this error."""
        for ticket in set(self._tickets.values()):
            ticket.close()
            ticket.deliver(error)

    def order(self, what: Callable[[Engine], object]) -> None:
        """Has the thread do something with the engine before its next step."""
        self._orders.put(what)

    def forget(self, ticket: Ticket) -> bool:
        """Takes a ticket off the books; False if it was off."""
        known = [self._tickets.pop(request_id, None) for request_id in ticket.ids]
        return any(known)

    async def submit(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> Ticket:
        """Hands prompts to the engine; ApiError 429 when the house is full, 503 while it closes, 400 for what the engine refuses."""
        if self.draining or not self.alive:
            raise ApiError(503, SHUTTING_DOWN, code="shutting_down")
        if len(self._tickets) + len(prompts) > self.queue_limit:
            raise overloaded(f"{len(self._tickets)} requests are running or waiting, the limit is {self.queue_limit}", "queue_full", 1)
        ticket = Ticket(self, len(prompts), params.n)
        self._tickets |= dict.fromkeys(ticket.ids, ticket)
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.order(lambda engine: self._admit(engine, ticket, prompts, params, accepted))
        try:
            await accepted
        except BaseException:
            ticket.close()
            raise
        return ticket

    # ------------------------------------------------------------------ in the engine's thread

    def abort(self, engine: Engine, request_ids: Sequence[str]) -> None:
        """Forgets requests; called in the engine's thread alone."""
        for request_id in request_ids:
            engine.abort(request_id)
            self._active.pop(request_id, None)

    def _admit(self, engine: Engine, ticket: Ticket, prompts: Any, params: SamplingParams, accepted: asyncio.Future[None]) -> None:
        added = []
        deadline = None if self.request_seconds is None else time.monotonic() + self.request_seconds
        try:
            for request_id, ids in zip(ticket.ids, prompts, strict=True):
                engine.add_request(request_id, ids, params, deadline=deadline)
                added.append(request_id)
        except Exception as error:
            for request_id in added:
                engine.abort(request_id)
            self._call(_settle, accepted, _refusal(error))
            return
        self._active |= dict.fromkeys(added, params.n)
        self._call(_settle, accepted, None)

    def _run(self) -> None:
        while True:
            while not self._orders.empty() or not self._active:
                what = self._orders.get()
                if what is None:
                    return
                what(self.engine)
            try:
                outputs = self.engine.step()
            except Exception as error:  # every request fails, the next one is tried
                self._fail(error)
                continue
            for output in outputs:
                if output.finish_reason is not None and output.request_id in self._active:
                    self._active[output.request_id] -= 1
                    if not self._active[output.request_id]:
                        del self._active[output.request_id]
            if outputs:
                self._call(self._deliver, outputs)

    def _fail(self, error: Exception) -> None:
        self.last_error = f"{type(error).__name__}: {error}"
        told = str(error) if isinstance(error, RorqualError) else "the engine failed"
        for request_id in self._active:
            with contextlib.suppress(Exception):
                self.engine.abort(request_id)
        self._call(self._give_up, set(self._active), ApiError(500, told, code="engine_error"))
        self._active.clear()

    def _call(self, function: Callable[..., object], *values: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            assert self._loop is not None
            self._loop.call_soon_threadsafe(function, *values)

    # ------------------------------------------------------------------ on the event loop

    def _deliver(self, outputs: Sequence[Any]) -> None:
        for output in outputs:
            ticket = self._tickets.get(output.request_id)
            if ticket is not None:
                ticket.deliver(output)

    def _give_up(self, request_ids: set[str], error: ApiError) -> None:
        for ticket in {self._tickets[request_id] for request_id in request_ids if request_id in self._tickets}:
            self.forget(ticket)
            ticket.deliver(error)


def _settle(accepted: asyncio.Future[None], error: ApiError | None) -> None:
    if accepted.done():  # the client has left
        return
    if error is None:
        accepted.set_result(None)
    else:
        accepted.set_exception(error)


def _refusal(error: Exception) -> ApiError:
    if type(error).__name__ == "QueueFullError":
        return overloaded(str(error), "queue_full", 1)
    if isinstance(error, ConfigError | DataError):
        return ApiError(400, str(error))
    if isinstance(error, RorqualError):
        return ApiError(501, str(error))
    return ApiError(500, "the engine failed", code="engine_error")
