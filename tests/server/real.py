"""A real server: `rorqual serve` in a process of its own over a small model with random weights, on a free port."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rorqual.checkpoint import hf
from rorqual.model.transformer import CausalLM
from tests.tiny import t0
from tests.tokenizer.samples import tokenizer


def model_folder(place: Path, **changes: Any) -> Path:
    """A model of the sample tokenizer, written to `place`."""
    words = tokenizer()
    words.save(place / "tokenizer")
    fields = {"vocab_size": 448, "initializer_range": 0.1, "bos_token_id": words.bos_id, "eos_token_id": words.eos_id}
    model = CausalLM(t0(**{**fields, "max_position_embeddings": 1024, **changes}))
    model.init_weights(1)
    return hf.export(model, place / "tokenizer", place / "tiny")


class Running:
    """A server's process; `port` once it is ready."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rorqual", "serve", str(folder), "--port", "0", *options], stderr=subprocess.PIPE, text=True
        )
        self.said: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if "Ctrl-C" in line:
                break
        found = re.search(r"http://[^ ]*:(\d+)/", "".join(self.said))
        assert found, "".join(self.said)
        self.port = int(found[1])

    def ask(self, method: str, path: str, body: Any = None, timeout: float = 60) -> tuple[int, bytes]:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def figure(self, name: str) -> float:
        """A sample of /metrics, summed over its labels."""
        text = self.ask("GET", "/metrics")[1].decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith((f"vllm:{name}{{", f"vllm:{name} ")))

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ends it; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(60)
        assert self.process.stderr is not None
        if not self.process.stderr.closed:
            self.said += self.process.stderr.readlines()
            self.process.stderr.close()
        return code


@contextlib.contextmanager
def running(folder: Path, *options: str) -> Iterator[Running]:
    """A server for the time of a block."""
    server = Running(folder, *options)
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL)


def until(condition: Any, seconds: float) -> float:
    """Seconds until `condition()` holds; it has `seconds`."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come to pass"
        time.sleep(0.02)
    return time.monotonic() - began
