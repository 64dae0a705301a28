"""Teachers that say what they are told to: in this process, and behind a small HTTP server."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rorqual.posttrain.generate import Draft, Drawing, Found, TeacherGone


def draft(content: str, reasoning: str = "", cut: bool = False, closed: bool = True, tokens: int | None = None) -> Draft:
    """A draft of as many tokens as it has words."""
    return Draft(reasoning, content, cut, closed, len((reasoning + " " + content).split()) if tokens is None else tokens)


class Scripted:
    """`say` maps (name, messages, number of the draft) to a Draft, a text to stand in one, or an exception; TeacherGone comes after `lasts` questions."""

    def __init__(self, say: Callable[[str, Any, int], Any], lasts: int | None = None) -> None:
        self._say, self._lasts = say, lasts
        self.asked: list[str] = []
        self.messages: list[Any] = []

    def describe(self) -> dict[str, Any]:
        return {"kind": "scripted"}

    def draw(self, asked: Sequence[tuple[str, Any]], how: Drawing) -> Iterator[tuple[str, Found]]:
        for number, (name, messages) in enumerate(asked):
            if self._lasts is not None and number >= self._lasts:
                raise TeacherGone("the teacher answers no more: it has gone")
            self.asked.append(name)
            self.messages.append(messages)
            said = [self._say(name, messages, choice) for choice in range(how.n)]
            if isinstance(said[0], Exception):
                yield name, str(said[0])
            else:
                yield name, [one if isinstance(one, Draft) else draft(one) for one in said]


@contextlib.contextmanager
def server(reply: Callable[[dict[str, Any]], tuple[int, Any]]) -> Iterator[str]:
    """The base URL of a server whose /chat/completions answers `reply(body)` = (status, object)."""

    class Handler(BaseHTTPRequestHandler):
        def _send(self, status: int, value: Any) -> None:
            raw = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": "whale"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(*reply(body))

        def log_message(self, *_: Any) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_address[1]}/v1"
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


def message(content: str, finish: str = "stop", **more: Any) -> dict[str, Any]:
    """A chat completion with one choice."""
    return {
        "choices": [{"message": {"role": "assistant", "content": content, **more}, "finish_reason": finish}],
        "usage": {"completion_tokens": 7},
    }
