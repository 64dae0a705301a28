"""A small client of an OpenAI-compatible server: JSON over HTTP with retries, nothing but the standard library. No torch.

What may pass (429, 500, 502, 503, 504, a refused or broken connection, silence) is tried again with doubling pauses; what will not is an
error at once. Every failure is a ServerError that says which URL, what came back and how often it was tried. Once several requests in a
row have failed after all their tries, the server counts as down and each further one gets a single try, until one succeeds.
"""

from __future__ import annotations

import http.client
import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from rorqual.errors import ConfigError, RorqualError

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_MOST_BYTES = 256 * 2**20
_DOWN = 8  # requests in a row that failed after all tries


class ServerError(RorqualError):
    """A request that failed for good. `status` is the HTTP status of the last try, None where no answer came."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Requests to one server. `url` is its base, such as http://localhost:8000/v1; may be used by several threads at once.

    timeout: seconds of silence after which a try has failed. retries: tries after the first one. pause: seconds before the second try,
    doubled for each further one, at most 30. ConfigError for a URL that is not http or https.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        retries: int = 4,
        pause: float = 0.5,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"url ({url!r}) must begin with http:// or https:// and name a host, such as http://localhost:8000/v1")
        try:
            port = parts.port
        except ValueError:
            raise ConfigError(f"url ({url!r}) has a port that is not a number from 0 to 65535") from None
        self.url = url.rstrip("/")
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._path = parts.path.rstrip("/")
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout, self._retries, self._pause, self._sleep = timeout, retries, pause, sleep
        self._lock = threading.Lock()
        self.requests = self.retried = self.failed = 0
        self._lost = 0

    def get(self, path: str) -> dict[str, Any]:
        """The object at `path` below the base."""
        return self._answer("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The object that the server answers to `body`."""
        return self._answer("POST", path, json.dumps(body, ensure_ascii=False).encode("utf-8"))

    def _answer(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        self._count("requests")
        for attempt in range(self._retries + 1):
            status, wait, problem = None, 0.0, ""
            try:
                status, headers, raw = self._once(method, path, body)
                if status == 200:
                    value = json.loads(raw)
                    if isinstance(value, dict):
                        self._lost = 0
                        return value
                    problem = f"answered {type(value).__name__}, an object is required"
                else:
                    problem = f"answered {status} ({_message(raw)})"
                    wait = _seconds(headers.get("retry-after"))
            except (OSError, http.client.HTTPException) as error:
                problem = f"gave no answer ({type(error).__name__}: {error})"
            except (ValueError, RecursionError):
                problem = "answered with what is not JSON"
            again = status is None or status == 200 or status in PASSING
            if not again or attempt == self._retries or self._lost >= _DOWN:
                break
            self._count("retried")
            self._sleep(min(30.0, max(wait, self._pause * 2**attempt)))
        self._count("failed")
        if again:
            self._count("_lost")
        else:
            self._lost = 0
        tries = "once" if attempt == 0 else f"{attempt + 1} times"
        raise ServerError(f"{method} {self.url}{path} {problem}; tried {tries}", status)

    def _once(self, method: str, path: str, body: bytes | None) -> tuple[int, dict[str, str], bytes]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout)
        try:
            connection.request(method, self._path + path, body, self._headers)
            response = connection.getresponse()
            raw = response.read(_MOST_BYTES + 1)
            if len(raw) > _MOST_BYTES:
                raise http.client.HTTPException(f"the answer is over {_MOST_BYTES} bytes")
            return response.status, {name.lower(): value for name, value in response.getheaders()}, raw
        finally:
            connection.close()

    def _count(self, name: str) -> None:
        with self._lock:
            setattr(self, name, getattr(self, name) + 1)


def _message(raw: bytes) -> str:
    """What an error's body says, at most 300 characters."""
    text = raw.decode("utf-8", "replace")
    try:
        value = json.loads(text)
        error = value.get("error", value) if isinstance(value, dict) else value
        text = str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except (ValueError, RecursionError):
        pass
    return " ".join(text.split())[:300] or "nothing"


def _seconds(text: str | None) -> float:
    try:
        value = float(text or 0)
    except ValueError:  # a date
        return 0.0
    return value if math.isfinite(value) and value > 0 else 0.0
