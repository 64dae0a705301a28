"""The official `openai` client against a running server: sync, async, streaming, tools, structured output, errors."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="the official client is the conformance test")
pytest.importorskip("llguidance", reason="structured output needs the extra serve")
pytest.importorskip("uvicorn", reason="the server needs the extra serve")

from pydantic import BaseModel  # noqa: E402

from tests.server.real import Running, model_folder, running, until  # noqa: E402

pytestmark = pytest.mark.peer
HI: Any = [{"role": "user", "content": "hi"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a town",
        "parameters": {
            "type": "object", "required": ["day"], "additionalProperties": False,
            "properties": {"day": {"type": "integer", "minimum": 0, "maximum": 9}, "wet": {"type": "boolean"}},
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = model_folder(tmp_path_factory.mktemp("conformance"), max_position_embeddings=2048)
    with running(folder, "--api-key", "sesame") as made:
        yield made


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="sesame", max_retries=0) as made:
        yield made


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_chat_streamed_and_whole_are_one_answer(client):
    asked = {"model": "tiny", "messages": HI, "max_tokens": 24, "seed": 5, "n": 3, "temperature": 0.9, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**asked)
    texts, reasons, usage = ["", "", ""], [None] * 3, None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        usage = chunk.usage or usage
    assert [choice.message.content for choice in whole.choices] == texts and len(set(texts)) == 3
    assert [choice.finish_reason for choice in whole.choices] == reasons
    counted = ("prompt_tokens", "completion_tokens", "total_tokens")  # how many drafts were tried depends on what pays at the moment
    assert [getattr(usage, name) for name in counted] == [getattr(whole.usage, name) for name in counted]
    for choice in whole.choices:
        for token in choice.logprobs.content:
            tops = [top.logprob for top in token.top_logprobs]
            assert len(tops) == 3 and tops == sorted(tops, reverse=True) and tops[0] >= token.logprob
            assert sum(math.exp(value) for value in tops) <= 1 + 1e-6


def test_async_clients_at_once(server):
    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="sesame", max_retries=0) as client:

            async def one(seed: int) -> str:
                stream = await client.chat.completions.create(model="tiny", messages=HI, max_tokens=16, seed=seed % 2, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one(seed) for seed in range(12)))

    texts = asyncio.run(main())
    assert len(set(texts)) == 2 and texts[0] == texts[2] != texts[1]


def test_a_stream_that_is_left_is_aborted(client, server):
    with client.chat.completions.create(model="tiny", messages=HI, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}) as stream:
        next(iter(stream))
    assert until(lambda: server.figure("num_requests_running") == 0, 5) < 1


def test_completions_echo_and_score_the_prompt(client):
    done = client.completions.create(model="tiny", prompt="def total(", max_tokens=0, echo=True, logprobs=2, temperature=0)
    found = done.choices[0].logprobs
    assert done.choices[0].text == "def total(" == "".join(found.tokens) and found.token_logprobs[0] is None
    assert all(value < 0 for value in found.token_logprobs[1:]) and all(len(top) == 2 for top in found.top_logprobs[1:])
    ids = client.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=3, extra_body={"return_token_ids": True}).choices[0]
    assert len(ids.token_ids) == 3 and ids.prompt_token_ids == [5, 6, 7]
    assert len(client.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=2).choices) == 4


def test_stop_strings_and_penalties_are_taken(client):
    plain = client.completions.create(model="tiny", prompt="for ", max_tokens=40, temperature=0).choices[0].text
    stop = plain[6:9]
    cut = client.completions.create(model="tiny", prompt="for ", max_tokens=40, temperature=0, stop=[stop]).choices[0]
    assert cut.text == plain[: plain.index(stop)] and cut.finish_reason == "stop"
    biased = client.completions.create(
        model="tiny", prompt="for ", max_tokens=5, temperature=0, logit_bias={"40": 100}, extra_body={"return_token_ids": True}
    )
    assert biased.choices[0].token_ids == [40] * 5


def test_a_forced_call_is_one_that_fits_the_schema(client):
    asked = {"model": "tiny", "messages": HI, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 200, "seed": 2}
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls[0].function.name == "weather"
    arguments = json.loads(choice.message.tool_calls[0].function.arguments)
    assert arguments["day"] in range(10) and set(arguments) <= {"day", "wet"}
    calls: dict[int, str] = {}
    for chunk in client.chat.completions.create(**asked, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            calls[call.index] = calls.get(call.index, "") + (call.function.arguments or "")
    assert [json.loads(text) for text in calls.values()] == [arguments]
    answered = [*HI, choice.message, {"role": "tool", "tool_call_id": choice.message.tool_calls[0].id, "content": "rain"}]
    assert client.chat.completions.create(model="tiny", messages=answered, tools=[WEATHER], max_tokens=4).usage.prompt_tokens > 40


class Point(BaseModel):
    """What the structured answer has to be."""

    x: int
    name: str


def test_structured_output(client):
    schema = Point.model_json_schema() | {"additionalProperties": False}
    schema["properties"]["name"]["maxLength"] = 12
    schema["properties"]["x"] |= {"minimum": -99, "maximum": 99}
    wanted = {"type": "json_schema", "json_schema": {"name": "point", "schema": schema, "strict": True}}
    for seed in range(3):
        done = client.chat.completions.create(model="tiny", messages=HI, response_format=wanted, max_tokens=300, seed=seed)
        assert done.choices[0].finish_reason == "stop" and Point.model_validate_json(done.choices[0].message.content)
    body = {"structured_outputs": {"regex": "[0-9]{3}-[ab]"}}
    text = client.chat.completions.create(model="tiny", messages=HI, max_tokens=20, extra_body=body).choices[0].message.content
    assert text[:3].isdecimal() and text[3] == "-" and text[4] in "ab" and len(text) == 5


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"temperature": -1}, "BadRequestError"), ({"model": "gpt-4"}, "NotFoundError"), ({"max_tokens": 10**9}, "BadRequestError"), ({"messages": []}, "BadRequestError"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strange"}}}}, "BadRequestError"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "no"}}}, "BadRequestError"),
    ],
)  # fmt: skip
def test_mistakes_have_the_clients_own_errors(client, change, error):
    with pytest.raises(getattr(openai, error)) as raised:
        client.chat.completions.create(**({"model": "tiny", "messages": HI, "max_tokens": 4} | change))
    assert raised.value.body["message"] and raised.value.type


def test_a_wrong_key(server):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="open", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_the_key_is_not_said_and_the_page_needs_none(server):
    assert server.ask("GET", "/")[0] == 200 and server.ask("GET", "/v1/models")[0] == 401
    assert "sesame" not in "".join(server.said)
