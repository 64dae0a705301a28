"""Types are taken strictly, null is the default, unknown fields are ignored."""

from __future__ import annotations

import pytest

pydantic = pytest.importorskip("pydantic", reason="the server needs the extra serve")

from rorqual.server.schemas import ChatRequest, CompletionRequest, DetokenizeRequest  # noqa: E402


@pytest.mark.parametrize(
    "fields", [{"max_tokens": "5"}, {"max_tokens": 1.5}, {"temperature": "0"}, {"stream": 1}, {"n": 0}, {"n": 129}, {"seed": 2**63}, {"stop": 7}, {"top_logprobs": 21}]
)  # fmt: skip
def test_what_has_the_wrong_type_or_size_is_refused(fields):
    with pytest.raises(pydantic.ValidationError):
        ChatRequest.model_validate({"messages": []} | fields)


def test_null_and_unknown_fields():
    request = ChatRequest.model_validate(
        {"messages": [{}], "temperature": None, "max_tokens": None, "seed": -(2**63), "metadata": {"a": 1}}
    )
    assert (request.temperature, request.seed) == (None, -(2**63)) and not hasattr(request, "metadata")


@pytest.mark.parametrize("prompt", ["a", [1, 2], ["a", "b"], [[1], [2, 3]]])
def test_prompts_in_all_four_forms(prompt):
    assert CompletionRequest.model_validate({"prompt": prompt}).prompt == prompt
    assert DetokenizeRequest.model_validate({"tokens": [1]}).tokens == [1]
