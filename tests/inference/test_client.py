"""The client against a server that fails in every way a server can."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from rorqual.errors import ConfigError
from rorqual.inference.client import Client, ServerError


class Server:
    """Answers from a list, one per request: (status, body bytes, headers), or "close" for a connection that breaks."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers, self.seen = answers, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                outer.seen.append((self.command, self.path, self.rfile.read(length), dict(self.headers)))
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                if answer == "close":
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                status, body, *headers = answer
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = _answer

            def log_message(self, *_: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def serve() -> Iterator[Any]:
    servers: list[Server] = []

    def start(*answers: Any) -> Server:
        servers.append(Server(list(answers)))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def _client(server: Server, **options: Any) -> tuple[Client, list[float]]:
    pauses: list[float] = []
    return Client(server.url, sleep=pauses.append, **options), pauses


OK = (200, b'{"ok": 1}')


def test_an_object_comes_back_and_the_request_is_json(serve):
    server = serve(OK)
    client, _ = _client(server, api_key="k")
    assert client.post("/completions", {"prompt": "\u6df1"}) == {"ok": 1} and client.get("/models") == {"ok": 1}
    method, path, body, headers = server.seen[0]
    assert (method, path, json.loads(body)) == ("POST", "/v1/completions", {"prompt": "\u6df1"})
    assert headers["Authorization"] == "Bearer k" and headers["Content-Type"] == "application/json"
    assert (client.requests, client.retried, client.failed) == (2, 0, 0)


@pytest.mark.parametrize("bad", [(500, b"boom"), (503, b""), (429, b"{}"), "close", (200, b"not json"), (200, b"[1]"), (200, b"")])
def test_what_may_pass_is_tried_again(serve, bad):
    client, pauses = _client(serve(bad, bad, OK), pause=0.5)
    assert client.post("/x", {}) == {"ok": 1}
    assert pauses == [0.5, 1.0] and client.retried == 2 and client.failed == 0


def test_the_servers_own_pause_is_kept(serve):
    client, pauses = _client(serve((429, b"", ("Retry-After", "7")), (429, b"", ("Retry-After", "Wed, 21 Oct 2026")), (429, b"", ("Retry-After", "inf")), OK))  # fmt: skip
    client.get("/x")
    assert pauses == [7.0, 1.0, 2.0]


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_what_will_not_pass_is_an_error_at_once(serve, status):
    client, pauses = _client(serve((status, b'{"error": {"message": "no such model"}}')))
    with pytest.raises(ServerError, match=rf"POST .*/v1/x answered {status} \(no such model\); tried once") as caught:
        client.post("/x", {})
    assert caught.value.status == status and pauses == [] and client.failed == 1


def test_a_server_that_never_recovers_is_an_error_after_all_tries(serve):
    client, pauses = _client(serve((500, b"boom " * 200)), retries=2)
    with pytest.raises(ServerError, match="answered 500 .*tried 3 times") as caught:
        client.get("/x")
    assert len(str(caught.value)) < 500 and len(pauses) == 2


def test_a_server_that_is_down_gets_one_try_until_it_is_back(serve):
    client, pauses = _client(serve(*[(500, b"")] * 18, OK, (500, b""), OK), retries=1)
    for _ in range(10):
        with pytest.raises(ServerError):
            client.get("/x")
    assert len(pauses) == 8 and client.failed == 10
    assert client.get("/x") == {"ok": 1} and client.get("/x") == {"ok": 1}
    assert len(pauses) == 9


def test_nobody_there_and_silence():
    with socket.socket() as quiet:
        quiet.bind(("127.0.0.1", 0))
        quiet.listen()
        url = f"http://127.0.0.1:{quiet.getsockname()[1]}"
        with pytest.raises(ServerError, match="gave no answer") as caught:
            Client(url, timeout=0.05, retries=1, sleep=lambda _: None).get("/x")
        assert caught.value.status is None
    with pytest.raises(ServerError, match="gave no answer"):
        Client(url, retries=0).get("/x")


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "http://host:99999"])
def test_urls_that_are_none_are_refused(url):
    with pytest.raises(ConfigError, match="url"):
        Client(url)
