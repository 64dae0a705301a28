"""Who may ask, how much and how often: keys, hosts, body size and depth, requests per minute (field case F25)."""

from __future__ import annotations

import hmac
import ipaddress
import json
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from rorqual.errors import ConfigError
from rorqual.server.errors import ApiError, overloaded

_CALLERS = 10_000


@dataclass(frozen=True)
class Limits:
    """`requests_per_minute` counts per key, or per address where there are no keys; None is no limit. `hosts` None takes any Host.

    `request_seconds` is how long one request may take before its answer is cut off.
    """

    api_keys: tuple[str, ...] = ()
    body_bytes: int = 8 * 2**20
    requests_per_minute: int | None = None
    queue_limit: int = 512
    hosts: tuple[str, ...] | None = None
    request_seconds: float | None = None


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_binding(host: str, api_keys: Sequence[str]) -> None:
    """ConfigError for an address that others can reach while nobody has to show a key."""
    if not is_loopback(host) and not any(api_keys):
        raise ConfigError(f"host ({host}) can be reached from other machines; give --api-key, or listen on 127.0.0.1")
    if any(not key or key != key.strip() or not key.isascii() for key in api_keys):
        raise ConfigError("an API key must be ASCII text without spaces around it, and not empty")


class Gate:
    """Lets requests in or raises ApiError."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._keys = [key.encode() for key in limits.api_keys]
        self._calls: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def enter(self, request: Request) -> None:
        """Host, key and rate; 403, 401 or 429."""
        hosts = self.limits.hosts
        if hosts is not None and _host_of(request.headers.get("host", "")) not in hosts:
            raise ApiError(403, "this server answers to its own address only; a page of another site may not use it", code="host_refused")
        caller = request.client.host if request.client else ""
        if self._keys:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            token = given.strip().encode() if scheme.lower() == "bearer" else b""
            matches = [hmac.compare_digest(token, key) for key in self._keys]  # all of them: time tells nothing
            if not any(matches):
                raise ApiError(401, "a valid API key is required: Authorization: Bearer KEY", code="invalid_api_key",
                               headers={"WWW-Authenticate": "Bearer"})  # fmt: skip
            caller = f"key {matches.index(True)}"
        if self.limits.requests_per_minute is not None:
            self._spend(caller, self.limits.requests_per_minute, time.monotonic())

    def _spend(self, caller: str, rate: int, now: float) -> None:
        """A bucket of one minute's requests, which fills evenly."""
        left, since = self._calls.pop(caller, (float(rate), now))
        left = min(float(rate), left + (now - since) * rate / 60)
        self._calls[caller] = (max(0.0, left - 1) if left >= 1 else left, now)
        if len(self._calls) > _CALLERS:
            self._calls.popitem(last=False)
        if left < 1:
            raise overloaded(f"more than {rate} requests a minute", "rate_limit_exceeded", round((1 - left) * 60 / rate + 0.5))

    async def body(self, request: Request) -> Any:
        """The JSON body. 413 as soon as it is too long, 400 for what is not strict JSON in UTF-8."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(400, f"Content-Type ({kind or 'absent'}) must be application/json")
        most, data = self.limits.body_bytes, bytearray()
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > most:
            raise ApiError(413, f"the body has {declared} bytes; at most {most} are taken", code="body_too_large")
        try:
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise ApiError(413, f"the body has more than {most} bytes", code="body_too_large")
        except ClientDisconnect:
            raise ApiError(400, "the client left") from None
        try:
            return json.loads(data.decode("utf-8"), parse_constant=_no_constant)
        except UnicodeDecodeError as error:
            raise ApiError(400, f"the body is not UTF-8 (byte {error.start})") from None
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is not JSON: {error}") from None


def _host_of(header: str) -> str | None:
    """The name in a Host header, without port and brackets."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def as_api_error(error: HTTPException) -> ApiError:
    """Starlette's own refusals (404, 405) in OpenAI's form."""
    return ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
