"""The server over a scripted engine: shapes of answers and streams, bad requests, limits (F21, F22, F24, F25, F26)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")

from rorqual.server.limits import Limits  # noqa: E402
from rorqual.tokenizer import special as S  # noqa: E402
from tests.server.house import BYTE, ask, run, saying  # noqa: E402
from tests.tokenizer.samples import tokenizer  # noqa: E402

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
CALL = f"{S.TOOL_CALL_BEGIN}function{S.TOOL_SEP}f\n```json\n%s\n```{S.TOOL_CALL_END}"


def events(response: Any) -> list[Any]:
    """The stream's objects; the end is checked and left out."""
    parts = response.text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""] and all(part.startswith("data: ") for part in parts[:-1])
    return [json.loads(part[6:]) for part in parts[:-2]]


def folded(chunks: list[Any], index: int) -> dict[str, Any]:
    """A choice's deltas joined, as a client does it."""
    out: dict[str, Any] = {"content": "", "reasoning": "", "calls": {}, "reasons": [], "logprobs": []}
    for choice in (c for chunk in chunks for c in chunk["choices"] if c["index"] == index):
        out["content"] += choice["delta"].get("content") or ""
        out["reasoning"] += choice["delta"].get("reasoning_content") or ""
        for call in choice["delta"].get("tool_calls", []):
            own = out["calls"].setdefault(call["index"], {"id": call.get("id"), "name": call["function"].get("name"), "arguments": ""})
            own["arguments"] += call["function"]["arguments"]
        out["reasons"] += [choice["finish_reason"]] if choice["finish_reason"] else []
        out["logprobs"] += (choice["logprobs"] or {}).get("content", [])
    return out


@pytest.mark.parametrize(
    "text", ["hello", "", "🦈 深度", "<think>hm\n</think>\n\nso", f"a{S.TOOL_CALLS_BEGIN}{CALL % '{}'}\n{CALL % '{'}{S.TOOL_CALLS_END}"]
)
@pytest.mark.parametrize("per_step", [1, 3])
def test_a_stream_folds_to_the_whole_answer(text: str, per_step: int) -> None:
    body = {"messages": [HI], "n": 2, "logprobs": True, "top_logprobs": 2, "tools": [TOOL]}
    whole = ask(saying(text, "two", per_step=per_step), CHAT, body, max_model_len=900).json()
    chunks = events(
        ask(
            saying(text, "two", per_step=per_step),
            CHAT,
            body | {"stream": True, "stream_options": {"include_usage": True}},
            max_model_len=900,
        )
    )
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:2]] == [{"role": "assistant", "content": ""}] * 2
    for index, choice in enumerate(whole["choices"]):
        stream, message = folded(chunks, index), choice["message"]
        assert stream["content"] == (message["content"] or "") and stream["reasoning"] == message.get("reasoning_content", "")
        assert stream["reasons"] == [choice["finish_reason"]] and stream["logprobs"] == choice["logprobs"]["content"]
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]
        assert [(call["name"], call["arguments"]) for call in stream["calls"].values()] == calls
    tokens = sum(len(choice["logprobs"]["content"]) for choice in whole["choices"])
    usage = whole["usage"]
    assert usage["completion_tokens"] == tokens and usage["total_tokens"] == usage["prompt_tokens"] + tokens


def test_what_an_answer_says() -> None:
    call = ask(
        saying(f"{S.TOOL_CALLS_BEGIN}{CALL % '{}'}{S.TOOL_CALLS_END}"), CHAT, {"messages": [HI], "tools": [TOOL]}, max_model_len=900
    ).json()["choices"][0]
    assert call["finish_reason"] == "tool_calls" and call["message"]["content"] is None
    assert call["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    empty = ask(saying(""), CHAT, {"messages": [HI]}).json()
    assert (empty["choices"][0]["message"]["content"], empty["choices"][0]["finish_reason"]) == ("", "stop")
    cut = ask(saying("hello"), CHAT, {"messages": [HI], "max_tokens": 1, "user": "u", "metadata": {}, "foo": 1}).json()["choices"][0]
    assert (cut["message"]["content"], cut["finish_reason"]) == ("h", "length")
    thinking = saying("a</think>b")
    answer = ask(thinking, CHAT, {"messages": [HI], "chat_template_kwargs": {"thinking": True}}).json()
    assert answer["choices"][0]["message"] | {"refusal": None} == {
        "role": "assistant", "content": "b", "refusal": None, "reasoning_content": "a",
    }  # fmt: skip
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 1
    assert tokenizer().decode(thinking.seen[0][0]).endswith("<think>\n")


def test_stop_strings_are_cut_off() -> None:
    for stream in (False, True):
        response = ask(saying("one END two"), CHAT, {"messages": [HI], "stop": "END", "stream": stream})
        text = folded(events(response), 0)["content"] if stream else response.json()["choices"][0]["message"]["content"]
        assert text == "one "


def test_logprobs_are_strict_json_with_bytes() -> None:
    engine = saying("🦈")
    one = ask(engine, CHAT, {"messages": [HI], "logprobs": True, "top_logprobs": 1}).json()["choices"][0]["logprobs"]["content"]
    assert bytes(byte for token in one[:4] for byte in token["bytes"]).decode() == "🦈" and len(one[0]["top_logprobs"]) == 1
    assert engine.seen[0][1].logprobs == 1
    assert ask(saying("a"), CHAT, {"messages": [HI], "top_logprobs": 1}).status_code == 400


def test_completions_echo_ids_and_scores() -> None:
    engine = saying("xyz")
    body = {"prompt": "abc", "echo": True, "logprobs": 1, "max_tokens": 2, "return_token_ids": True}
    choice = ask(engine, TEXT, body).json()["choices"][0]
    assert choice["text"] == "abcxy" and choice["finish_reason"] == "length"
    assert choice["prompt_token_ids"] == tokenizer().encode("abc") and choice["token_ids"] == [BYTE[b"x"], BYTE[b"y"]]
    assert choice["logprobs"]["token_logprobs"][0] is None and set(choice["logprobs"]["token_logprobs"][1:]) == {-0.5}
    assert "".join(choice["logprobs"]["tokens"]) == "abcxy"
    assert [choice["text"][at : at + 1] for at in choice["logprobs"]["text_offset"][-2:]] == ["x", "y"]
    scored = ask(saying("xyz"), TEXT, body | {"max_tokens": 0}).json()["choices"][0]
    assert scored["text"] == "abc" and "".join(scored["logprobs"]["tokens"]) == "abc"
    assert engine.seen[0][1].prompt_logprobs == 1


def test_completions_of_several_prompts() -> None:
    for prompt in (["a", "b"], [[5, 6], [7]]):
        whole = ask(saying("p", "q"), TEXT, {"prompt": prompt, "n": 2}).json()
        assert [(c["index"], c["text"]) for c in whole["choices"]] == [(0, "p"), (1, "q"), (2, "p"), (3, "q")]
    chunks = events(ask(saying("p", "q"), TEXT, {"prompt": [5, 6], "stream": True, "n": 2}))
    assert ["".join(c["choices"][0]["text"] for c in chunks if c["choices"][0]["index"] == i) for i in (0, 1)] == ["p", "q"]
    assert whole["object"] == chunks[0]["object"] == "text_completion"


def test_drafts_are_marked_token_by_token() -> None:
    chunks = events(ask(saying("abcde", per_step=3), CHAT, {"messages": [HI], "stream": True, "return_drafts": True}))
    assert [(c["choices"][0]["delta"].get("content"), c["choices"][0]["draft"]) for c in chunks[1:]] == [
        ("a", True), ("b", True), ("c", False), ("d", True), ("e", True), (None, False),
    ]  # fmt: skip


BAD: list[tuple[Any, int]] = [
    ({"messages": [{"role": "user", "content": "x" * 300}]}, 400), ({"messages": [HI], "max_tokens": 254}, 400), ({"messages": [HI], "max_tokens": 0}, 400),
    ({"messages": [HI], "max_tokens": -1}, 400), ({"messages": [HI], "max_tokens": "5"}, 400), ({"messages": [HI], "max_tokens": 1e18}, 400),
    ({"messages": [HI], "max_tokens": 10**18}, 400), ({"messages": [HI], "temperature": -1}, 400), ({"messages": [HI], "temperature": "hot"}, 400),
    ({"messages": [HI], "top_p": 0}, 400), ({"messages": [HI], "top_p": 1.5}, 400), ({"messages": []}, 400), ({}, 400), ({"messages": "hi"}, 400),
    ({"messages": [{"role": "wizard", "content": "a"}]}, 400), ({"messages": [{"role": "user", "content": 7}]}, 400), ({"messages": [HI], "model": "no"}, 404),
    ({"messages": [HI], "stream": "yes"}, 400), ({"messages": [HI], "n": 0}, 400), ({"messages": [HI], "logit_bias": {"a": 1}}, 400),
    ({"messages": [HI], "top_logprobs": 21, "logprobs": True}, 400), ({"messages": [HI], "tools": [7]}, 400), ({"messages": [HI], "stop": [""]}, 400),
    ({"messages": [HI], "tool_choice": "required"}, 400), ({"messages": [HI], "response_format": {"type": "x"}}, 400), (7, 400), ([], 400), (None, 400),
    ({"messages": [HI], "response_format": {"type": "json_schema"}}, 400), ({"messages": [HI], "structured_outputs": {}}, 400),
    ({"messages": [HI], "structured_outputs": {"regex": 7}}, 400), ({"messages": [HI], "chat_template_kwargs": {"thinking": 7}}, 400),
]  # fmt: skip


def test_bad_requests_are_told_and_the_next_one_works() -> None:
    raw = [(b"not json", {}), (b'{"messages": [{"role": "user", "content": "\xff"}]}', {}), (b"[" * 100_000, {}), (b'{"temperature": NaN}', {}),
           (b"{}", {"content-type": "text/plain"}), (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', {}), (b"9" * 5000, {})]  # fmt: skip

    async def work(client: Any) -> None:
        answers = [(await client.post(CHAT, json=body), status, str(body)) for body, status in BAD]
        answers += [
            (await client.post(CHAT, content=data, headers={"content-type": "application/json"} | headers), 400, str(data[:20]))
            for data, headers in raw
        ]
        answers.append((await client.post(CHAT, content=b" " * (9 * 2**20), headers={"content-type": "application/json"}), 413, "long"))
        answers += [(await client.get(CHAT), 405, "GET"), (await client.get("/nowhere"), 404, "path")]
        for prompt in ([512], [-1], [2**31], ["a", 1], [1.5], [], [[]], {}, None, [[512]]):
            answers.append((await client.post(TEXT, json={"prompt": prompt}), 400, str(prompt)))
        for response, status, what in answers:
            assert response.status_code == status, (what, response.text)
            assert set(response.json()["error"]) == {"message", "type", "param", "code"} and "Traceback" not in response.text
        too_long = answers[1][0].json()["error"]
        assert too_long["code"] == "context_length_exceeded" and "256" in too_long["message"] and "254" in too_long["message"]
        good = await client.post(CHAT, json={"messages": [HI], "max_tokens": None, "temperature": None, "top_p": None})
        assert good.json()["choices"][0]["message"]["content"] == "fine"

    run(saying("fine"), work)


def test_keys_hosts_rates_and_queue() -> None:
    async def keys(client: Any) -> None:
        for header in (
            {},
            {"authorization": "Bearer b"},
            {"authorization": "Basic aa"},
            {"authorization": "Bearer aaa"},
            {"authorization": "aa"},
        ):
            assert (await client.get("/v1/models", headers=header)).status_code == 401
        assert (await client.get("/v1/models", headers={"authorization": "Bearer aa"})).status_code == 200
        for path in ("/health", "/ready", "/metrics", "/"):
            assert (await client.get(path)).status_code == 200

    run(saying("a"), keys, Limits(api_keys=("aa", "bb")))

    async def hosts(client: Any) -> None:
        for host, status in (("127.0.0.1:8000", 200), ("localhost", 200), ("evil.example", 403)):
            assert (await client.get("/v1/models", headers={"host": host})).status_code == status

    run(saying("a"), hosts, Limits(hosts=("127.0.0.1", "localhost")))

    async def rate(client: Any) -> None:
        answers = [await client.get("/v1/models") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
        assert int(answers[2].headers["retry-after"]) == 30

    run(saying("a"), rate, Limits(requests_per_minute=2))

    async def full(client: Any) -> None:
        answers = await asyncio.gather(*(client.post(CHAT, json={"messages": [HI]}) for _ in range(8)))
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 5
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status_code == 429)
        assert (await client.post(CHAT, json={"messages": [HI]})).status_code == 200

    run(saying("abc", delay=0.01), full, Limits(queue_limit=3))


def test_an_engine_that_fails_takes_nobody_with_it() -> None:
    async def work(client: Any) -> None:
        client.service.worker.engine.fail = "secret path"
        answer = await client.post(CHAT, json={"messages": [HI]})
        assert answer.status_code == 500 and answer.json()["error"]["message"] == "the engine failed"
        client.service.worker.engine.fail = "secret path"
        stream = await client.post(CHAT, json={"messages": [HI], "stream": True})
        assert json.loads(stream.text.strip().split("\n\n")[-1][6:])["error"]["type"] == "server_error" and "[DONE]" not in stream.text
        assert (await client.post(CHAT, json={"messages": [HI]})).status_code == 200

    run(saying("abc"), work)


def test_models_tokens_and_figures() -> None:
    async def work(client: Any) -> None:
        assert (await client.get("/v1/models")).json()["data"][0] | {"created": 0} == {
            "id": "tiny", "object": "model", "created": 0, "owned_by": "rorqual", "max_model_len": 256,
        }  # fmt: skip
        text = (await client.post("/tokenize", json={"prompt": "the 🦈", "return_token_strs": True})).json()
        assert text["tokens"] == tokenizer().encode("the 🦈") and text["count"] == len(text["token_strs"]) == len(text["tokens"])
        assert (await client.post("/detokenize", json={"tokens": text["tokens"]})).json() == {"prompt": "the 🦈"}
        chat = (await client.post("/tokenize", json={"messages": [HI]})).json()["tokens"]
        assert tokenizer().decode(chat) == f"{S.BOS}{S.USER}hi{S.ASSISTANT}"
        assert (
            (await client.post("/tokenize", json={})).status_code
            == (await client.post("/detokenize", json={"tokens": [-1]})).status_code
            == 400
        )
        assert (await client.post(CHAT, json={"messages": [HI]})).status_code == 200
        figures = (await client.get("/metrics")).text
        for line in ('prompt_tokens_total{model_name="tiny"} 5.0', 'generation_tokens_total{model_name="tiny"} 4.0', 'num_requests_running{model_name="tiny"} 2.0',
                     'request_success_total{finished_reason="stop",model_name="tiny"} 1.0', 'time_to_first_token_seconds_count{model_name="tiny"} 1.0',
                     'spec_decode_num_accepted_tokens_total{model_name="tiny"} 7.0', 'request_errors_total{model_name="tiny",status="400"} 2.0'):  # fmt: skip
            assert f"vllm:{line}" in figures

    run(saying("abc", stats={"running": 2, "accepted": 7}), work)


def test_a_forced_call_brings_its_opening_and_its_grammar() -> None:
    engine = saying('f\n```json\n{"a":1}\n```')
    body = {"messages": [HI], "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}
    choice = ask(engine, CHAT, body, max_model_len=900).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a":1}'}
    ids, params = engine.seen[0]
    assert tokenizer().decode(ids).endswith(f"{S.ASSISTANT}{S.TOOL_CALLS_BEGIN}{S.TOOL_CALL_BEGIN}function{S.TOOL_SEP}")
    assert params.structured_outputs.grammar.startswith("start: call0\ncall0:")
    assert (
        folded(events(ask(saying('f\n```json\n{"a":1}\n```'), CHAT, body | {"stream": True}, max_model_len=900)), 0)["calls"][0][
            "arguments"
        ]
        == '{"a":1}'
    )


def test_structured_output_reaches_the_engine() -> None:
    engine = saying("{}")
    ask(
        engine,
        CHAT,
        {"messages": [HI], "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
    )
    ask(engine, CHAT, {"messages": [HI], "response_format": {"type": "json_object"}})
    ask(engine, CHAT, {"messages": [HI], "structured_outputs": {"choice": ["a", "b"]}})
    wanted = [params.structured_outputs for _, params in engine.seen]
    assert (wanted[0].json, wanted[1].json_object, wanted[2].choice) == ({"type": "object"}, True, ("a", "b"))
