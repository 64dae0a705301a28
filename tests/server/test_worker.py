"""The engine's thread: rest, order, failure, and nothing of a request that was closed."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

from rorqual.inference.params import SamplingParams  # noqa: E402
from rorqual.server.errors import ApiError  # noqa: E402
from rorqual.server.worker import Worker  # noqa: E402
from tests.server.house import saying  # noqa: E402

GREEDY = SamplingParams(temperature=0)


class _Counting:
    """The scripted engine, its steps and threads noted."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.steps, self.threads = engine, 0, set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def add_request(self, *args: Any, **options: Any) -> None:
        self.threads.add(threading.current_thread().name)
        self._engine.add_request(*args, **options)

    def step(self) -> Any:
        self.steps += 1
        self.threads.add(threading.current_thread().name)
        return self._engine.step()


def _run(work: Any, engine: Any, queue_limit: int = 8) -> Any:
    async def main() -> Any:
        worker = Worker(engine, queue_limit)
        worker.start()
        try:
            return await work(worker)
        finally:
            worker.stop()

    return asyncio.run(main())


def test_outputs_come_in_order_and_the_thread_then_rests():
    engine = _Counting(saying("abc"))

    async def work(worker: Worker) -> None:
        ticket = await worker.submit([[5], [6]], GREEDY)
        seen = [(prompt, out.new_token_ids, out.finish_reason) async for prompt, out in ticket.outputs()]
        assert [reason for _, _, reason in seen] == [None] * 6 + ["stop"] * 2 and {prompt for prompt, _, _ in seen} == {0, 1}
        steps = engine.steps
        await asyncio.sleep(0.05)
        assert engine.steps == steps == 4 and worker.num_requests == 0

    _run(work, engine)
    assert engine.threads == {"engine"}


def test_a_closed_ticket_is_aborted_and_gets_nothing_more():
    engine = _Counting(saying("x" * 500, delay=0.001))

    async def work(worker: Worker) -> None:
        ticket = await worker.submit([[5]], GREEDY)
        async for _ in ticket.outputs():
            ticket.close()
            break
        await asyncio.sleep(0.05)
        steps = engine.steps
        await asyncio.sleep(0.05)
        assert engine.steps == steps < 400 and engine.aborted == ticket.ids and worker.num_requests == 0

    _run(work, engine)


def test_one_failure_ends_what_ran_and_nothing_else():
    engine = _Counting(saying("abc", delay=0.002))

    async def work(worker: Worker) -> None:
        ticket = await worker.submit([[5]], GREEDY)
        engine._engine.fail = "boom"
        with pytest.raises(ApiError, match="the engine failed"):
            async for _ in ticket.outputs():
                pass
        assert worker.last_error == "RuntimeError: boom" and worker.alive
        again = await worker.submit([[5]], GREEDY)
        assert len([out async for out in again.outputs()]) == 4

    _run(work, engine)


def test_a_full_house_and_a_closing_one():
    async def work(worker: Worker) -> None:
        first = await worker.submit([[5], [6]], GREEDY)
        with pytest.raises(ApiError, match="2 requests are running or waiting, the limit is 2") as full:
            await worker.submit([[7]], GREEDY)
        assert full.value.status == 429 and full.value.headers == {"Retry-After": "1"}
        worker.draining = True
        with pytest.raises(ApiError, match="shutting down") as closing:
            await worker.submit([[7]], GREEDY)
        assert closing.value.status == 503
        first.close()

    _run(work, saying("x" * 100, delay=0.001), queue_limit=2)


def test_what_the_engine_refuses_is_the_clients_mistake():
    class Refusing:
        has_work = False

        def __init__(self) -> None:
            self.aborted: list[str] = []

        def add_request(self, request_id: str, prompt_ids: Any, params: Any, *, deadline: float | None = None) -> None:
            from rorqual.errors import DataError

            if prompt_ids == [9]:
                raise DataError("the prompt is too long")

        def abort(self, request_id: str) -> None:
            self.aborted.append(request_id)

    engine = Refusing()

    async def work(worker: Worker) -> None:
        with pytest.raises(ApiError, match="too long") as refused:
            await worker.submit([[5], [9]], GREEDY)
        assert refused.value.status == 400 and worker.num_requests == 0

    _run(work, engine)
    assert len(engine.aborted) >= 1  # the first prompt of the two
