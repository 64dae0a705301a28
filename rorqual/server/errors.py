"""Errors as OpenAI's API tells them: `{"error": {"message", "type", "param", "code"}}` (field case F25). No traceback leaves the house."""

from __future__ import annotations

from typing import Any

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer other than 200. `param` names the field at fault, `code` is for programs, `headers` go with it."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object that is sent."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message[:2000], "type": kind, "param": self.param, "code": self.code}}


def overloaded(message: str, code: str, seconds: int) -> ApiError:
    """429 with Retry-After."""
    return ApiError(429, message, code=code, headers={"Retry-After": str(max(1, seconds))})
