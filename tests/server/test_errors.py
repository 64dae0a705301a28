"""Errors in OpenAI's form (F25)."""

from __future__ import annotations

import pytest

from rorqual.server.errors import ApiError, overloaded


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (401, "authentication_error"), (403, "permission_error"), (404, "not_found_error"), (413, "invalid_request_error"),
     (429, "rate_limit_error"), (500, "server_error"), (503, "server_error")],
)  # fmt: skip
def test_every_status_has_its_type(status, kind):
    assert ApiError(status, "no", param="n", code="c").body == {"error": {"message": "no", "type": kind, "param": "n", "code": "c"}}


def test_a_message_is_not_as_long_as_the_request_that_caused_it():
    assert len(ApiError(400, "x" * 10_000).body["error"]["message"]) == 2000


def test_who_is_told_to_wait_is_told_how_long():
    assert (overloaded("full", "queue_full", 0).status, overloaded("full", "queue_full", 0).headers) == (429, {"Retry-After": "1"})
