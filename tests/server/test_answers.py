"""Strict JSON, and a step's tokens one by one."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

from rorqual.inference.params import SamplingParams  # noqa: E402
from rorqual.server.answers import Choice, dumps, event, single  # noqa: E402
from tests.server.house import BYTE, served  # noqa: E402
from tests.server.scripted import StepOutput  # noqa: E402


def test_json_is_strict_and_text_stays_text():
    assert event({"a": "\u6df1\n"}) == 'data: {"a":"\u6df1\\n"}\n\n'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        dumps({"a": float("nan")})


def test_all_but_the_last_token_of_a_step_were_drafts():
    parts = single(StepOutput("r", 0, [4, 5, 6], None, "stop"))
    assert [(part.new_token_ids, part.finish_reason, draft) for part, draft in parts] == [
        ([4], None, True), ([5], None, True), ([6], "stop", False),
    ]  # fmt: skip
    assert [(part.new_token_ids, part.finish_reason) for part, _ in single(StepOutput("r", 0, [], None, "abort"))] == [([], "abort")]


def test_an_end_token_is_counted_and_not_shown():
    choice = Choice(served(), SamplingParams(), 0, tools=False, reasoning=False, plain=True, special=False)
    choice.take(StepOutput("r", 0, [BYTE[b"h"], BYTE[b"i"]]))
    choice.take(StepOutput("r", 0, [1], None, "stop"))
    assert (choice.answer.content, len(choice.token_ids), choice.finish_reason, choice.accepted) == ("hi", 3, "stop", 1)
