"""From fields to ids and parameters, field by field (F25)."""

from __future__ import annotations

import pytest

pytest.importorskip("pydantic", reason="the server needs the extra serve")

from rorqual.server import requests  # noqa: E402
from rorqual.server.errors import ApiError  # noqa: E402
from rorqual.server.schemas import ChatRequest, CompletionRequest  # noqa: E402
from tests.server.house import served  # noqa: E402
from tests.tokenizer.samples import tokenizer  # noqa: E402


def _chat(**fields):  # type: ignore[no-untyped-def]
    return requests.chat_params(ChatRequest.model_validate({"messages": [{"role": "user", "content": "a"}]} | fields))


def test_defaults_are_openais():
    params = _chat()
    assert (params.temperature, params.top_p, params.top_k, params.n, params.max_tokens, params.logprobs) == (1.0, 1.0, 0, 1, None, None)
    assert _chat().seed != params.seed and _chat(seed=-3).seed == -3
    assert requests.completion_params(CompletionRequest(prompt="a")).max_tokens == requests.DEFAULT_COMPLETION_TOKENS == 16
    assert _chat(max_tokens=9, max_completion_tokens=4).max_tokens == 4 and _chat(top_k=-1).top_k == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"temperature": -1.0}, "temperature"), ({"logit_bias": {"x": 1.0}}, "logit_bias"), ({"top_logprobs": 2}, "top_logprobs"), ({"stop": ["a"] * 99}, "stop"),
     ({"response_format": {"type": "xml"}}, "response_format"), ({"structured_outputs": {"sql": "a"}}, "structured_outputs")],
)  # fmt: skip
def test_a_refusal_names_the_field(fields, param):
    with pytest.raises(ApiError) as refused:
        _chat(**fields)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_prompts_in_every_form():
    ids = tokenizer().encode("value")
    assert requests.prompts(served(), "value") == [ids] and requests.prompts(served(), ["value", "value"]) == [ids, ids]
    assert requests.prompts(served(), [5, 6]) == [[5, 6]] and requests.prompts(served(), [[5], [6]]) == [[5], [6]]
    assert requests.prompts(served(adds_bos=True), "value") == [[tokenizer().bos_id, *ids]]
    assert requests.prompts(served(), "") == [[1]] and requests.prompts(served(adds_bos=True), "") == [[tokenizer().bos_id]]
    for wrong in ([], [[]], ["a", "\ud800"]):
        with pytest.raises(ApiError):
            requests.prompts(served(), wrong)


def test_a_prompt_has_to_fit_with_its_answer():
    requests.check_prompt(served(), [5] * 250, 6)
    with pytest.raises(ApiError, match="context is 256 tokens; the prompt has 250 and 7 are asked for") as refused:
        requests.check_prompt(served(), [5] * 250, 7)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(ApiError, match="token id 512 is outside"):
        requests.check_prompt(served(), [512], 1)
