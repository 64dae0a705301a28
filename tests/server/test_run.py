"""`rorqual serve` as a process: the same answers for everybody, clients that leave, an end that leaves nobody hanging."""

from __future__ import annotations

import concurrent.futures
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the server needs the extra serve")
pytest.importorskip("fastapi", reason="the server needs the extra serve")

from rorqual import LLM, SamplingParams  # noqa: E402
from tests.server.real import Running, model_folder, running, until  # noqa: E402

ENDLESS = {"prompt": "def total(", "max_tokens": 1000, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with running(folder) as made:
        yield made


def _stream(server: Running, body: dict[str, Any]) -> tuple[list[int], str | None]:
    """Ids of a streamed completion, and how it ended; an error event's message where there was one."""
    status, data = server.ask("POST", "/v1/completions", body | {"stream": True, "return_token_ids": True})
    assert status == 200
    parts = [part[6:] for part in data.decode().split("\n\n") if part.startswith("data: ")]
    events = [json.loads(part) for part in parts if part != "[DONE]"]
    if "error" in events[-1]:
        return [], events[-1]["error"]["message"]
    assert parts[-1] == "[DONE]"
    chosen = [event["choices"][0] for event in events]
    return [number for choice in chosen for number in choice["token_ids"]], chosen[-1]["finish_reason"]


def test_everybody_gets_what_he_would_get_alone(server, folder):
    """24 streams at once, greedy and sampled, against the engine offline."""
    bodies = [
        {"prompt": f"value {number} = ", "max_tokens": 12 + number, "temperature": 0.8 * (number % 2), "seed": number, "ignore_eos": True}
        for number in range(24)
    ]
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        streamed = list(pool.map(lambda body: _stream(server, body), bodies))
    llm = LLM(folder)
    params = [SamplingParams(max_tokens=b["max_tokens"], temperature=b["temperature"], seed=b["seed"], ignore_eos=True) for b in bodies]
    alone = [llm.generate(b["prompt"], p)[0].outputs[0].token_ids for b, p in zip(bodies, params, strict=True)]
    assert [ids for ids, _ in streamed] == alone
    assert all(len(set(map(tuple, alone[start::2]))) > 6 for start in (0, 1))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_forgotten_within_a_second(server, stream):
    before = server.figure("request_success_total")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        body = json.dumps(ENDLESS | {"stream": stream, "n": 4}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        until(lambda: server.figure("num_requests_running") == 4, 20)
    assert until(lambda: server.figure("num_requests_running") == 0, 5) < 1
    until(lambda: server.figure("request_success_total") == before + 1, 5)


def test_the_engine_rests_when_nobody_asks(server):
    _stream(server, ENDLESS | {"max_tokens": 2})
    fields = Path(f"/proc/{server.process.pid}/stat")
    if not fields.is_file():
        pytest.skip("needs /proc")
    before = sum(map(int, fields.read_text().rpartition(")")[2].split()[11:13]))
    threading.Event().wait(1.0)
    assert sum(map(int, fields.read_text().rpartition(")")[2].split()[11:13])) - before < 20  # ticks of 10 ms


def test_shutdown_lets_answers_finish(server):
    """The last test of the module's server: it ends here."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(_stream, server, ENDLESS | {"max_tokens": 500})
        until(lambda: server.figure("num_requests_running") == 1, 20)
        assert server.stop(signal.SIGTERM) == 0
        ids, reason = answer.result(10)
        assert (len(ids), reason) == (500, "length")


def test_what_does_not_finish_in_time_is_failed_clearly(folder):
    with running(folder, "--grace", "0") as server, concurrent.futures.ThreadPoolExecutor(2) as pool:
        streamed = pool.submit(_stream, server, ENDLESS | {"n": 2})
        whole = pool.submit(server.ask, "POST", "/v1/completions", ENDLESS | {"n": 2})
        until(lambda: server.figure("num_requests_running") == 4, 20)
        assert server.stop(signal.SIGINT) == 0
        assert "shutting down" in str(streamed.result(10)[1])
        status, body = whole.result(10)
        assert status == 503 and json.loads(body)["error"]["code"] == "shutting_down"
    assert not any("Traceback" in line for line in server.said), server.said


@pytest.mark.slow
@pytest.mark.parametrize("limit", [512, 100])
def test_five_hundred_clients(limit):
    """With room for all no request fails or differs; with less the excess gets 429 and nothing else fails; memory stays."""
    script = Path(__file__).parents[2] / "benchmarks" / "load.py"
    command = [sys.executable, str(script), "--clients", "500", "--queue-limit", str(limit), "--minutes", "0.5"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    assert figures["answers"] > 500 and figures["errors"] == figures["wrong"] == 0 and (figures["refused"] > 0) == (limit < 500)
    assert figures["resident_mb_end"] < 1.05 * figures["resident_mb_early"]
