"""A server as a model: echoed log-probabilities, answers, failures that are counted; servers without echo are refused by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from rorqual.errors import ConfigError
from rorqual.eval.models import Asking, Failure, Generation, Likelihood, TextScore
from rorqual.eval.remote import ServerModel
from rorqual.inference.client import Client, ServerError
from tests.eval import small


class Fake:
    """Stands for the client. Tokens are words with the space before them, and a token's log-probability is minus its length."""

    url, requests, retried, failed = "http://house/v1", 0, 0, 0

    def __init__(self, answer: Any = None, bos: str = "") -> None:
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.answer, self.bos = answer, bos

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.bodies.append((path, body))
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is not None:
            return self.answer(body) if callable(self.answer) else self.answer
        return self.echo(body)

    def echo(self, body: dict[str, Any]) -> dict[str, Any]:
        words = body["prompt"].replace(" ", "\0 ").split("\0")
        tokens = [*([self.bos] if self.bos else []), *(word for word in words if word), " new"]
        values: list[float | None] = [None, *(-float(len(token)) for token in tokens[1:])]
        offsets = [sum(map(len, tokens[:place])) for place in range(len(tokens))]
        tops = [None, *({token: -float(len(token)) if len(token) < 6 else -1.0} for token in tokens[1:])]
        logprobs = {"tokens": tokens, "token_logprobs": values, "text_offset": offsets, "top_logprobs": tops}
        return {"choices": [{"text": "".join(tokens), "logprobs": logprobs, "finish_reason": "length"}]}


def _model(fake: Fake, parallel: int = 2) -> ServerModel:
    return ServerModel(fake, "m", parallel)  # type: ignore[arg-type]


@pytest.mark.parametrize("bos", ["", "<s>"])
def test_only_the_continuation_is_summed(bos):
    made = _model(Fake(bos=bos))
    assert made.likelihood([("the whale", " sings"), ("the whale ", "sings low"), ("", "a b")]) == [
        Likelihood(-6.0, False, 1), Likelihood(-10.0, False, 2), Likelihood(-3.0 if bos else -2.0, True, 2 if bos else 1),
    ]  # fmt: skip


def test_characters_in_several_tokens_fall_back_on_counting():
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        tokens = [token for character in body["prompt"] for token in (["\ufffd"] * 2 if character == "\u00e9" else [character])] + ["x"]
        logprobs = {"tokens": tokens, "token_logprobs": [None] + [-1.0] * (len(tokens) - 1), "text_offset": list(range(len(tokens)))}
        return {"choices": [{"text": body["prompt"] + "x", "logprobs": logprobs}]}

    fake = Fake(answer)
    assert _model(fake).likelihood([("a\u00e9b", "cd")]) == [Likelihood(-2.0, False, 2)]
    assert [body["prompt"] for _, body in fake.bodies] == ["a\u00e9bcd", "a\u00e9b"]


def test_whole_texts_count_the_bytes_that_were_scored():
    assert _model(Fake()).text_scores(["the whale", ""]) == [TextScore(6.0, 6, 1), TextScore(0.0, 0, 0)]
    assert _model(Fake(bos="<s>")).text_scores(["the whale"]) == [TextScore(9.0, 9, 2)]


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"text": "Paris"}]}, {"choices": [{"text": "x", "logprobs": {"tokens": ["x"], "token_logprobs": [-1], "text_offset": [0]}}]},
        {"choices": []}, {"error": "x"}, ServerError("boom", 500),
        {"choices": [{"text": " x y", "logprobs": {"tokens": [" x", " y"], "token_logprobs": [-1, -1], "text_offset": [0, 2]}}]},
    ],
)  # fmt: skip
def test_a_server_without_echo_is_refused_by_name(answer):
    with pytest.raises(ConfigError, match=r"lambada, piqa need the log-probabilities .* http://house/v1 does not give"):
        _model(Fake(answer)).require_likelihood(["lambada", "piqa"])
    _model(Fake()).require_likelihood(["lambada"])


def _answers(made: ServerModel, asking: Asking, count: int = 1) -> list[Any]:
    return [found for _, found in sorted(made.generate([(f"t/{n}", f"p{n}") for n in range(count)], asking), key=lambda pair: pair[0])]


def test_answers_are_cut_at_every_stop_string():
    fake = Fake({"choices": [{"text": "a b#c", "finish_reason": "length"}], "usage": {"completion_tokens": 4}})
    stops = ("1", "2", "3", "4", "#")
    assert _answers(_model(fake), Asking(max_tokens=9, stop=stops, seed=1), 3) == [[Generation("a b", "stop", 4)]] * 3
    assert fake.bodies[0][1]["stop"] == ["1", "2", "3", "4"] and fake.bodies[0][1]["max_tokens"] == 9
    assert len({body["seed"] for _, body in fake.bodies}) == 3


def test_chat_asks_the_other_endpoint():
    fake = Fake({"choices": [{"message": {"content": "hi", "reasoning_content": "hm"}, "finish_reason": "stop"}]})
    assert _answers(_model(fake), Asking(chat=True)) == [[Generation("hi", "stop", 0)]]
    path, body = fake.bodies[0]
    assert path == "/chat/completions" and body["messages"] == [{"role": "user", "content": "p0"}] and "prompt" not in body


@pytest.mark.parametrize("answer", [ServerError("boom", 500), {"choices": [{}]}, {"choices": [{"text": None}]}, {}, {"choices": "x"}])
def test_a_request_that_fails_is_a_counted_failure(answer):
    assert all(isinstance(found, Failure) for found in _answers(_model(Fake(answer)), Asking(), 3))
    assert all(isinstance(found, Failure) for found in _model(Fake(answer)).likelihood([("a", " b")]))


def test_an_empty_message_is_an_answer():
    fake = Fake({"choices": [{"message": {"content": None}, "finish_reason": "length"}]})
    assert _answers(_model(fake), Asking(chat=True)) == [[Generation("", "length", 0)]]


@pytest.mark.slow
def test_our_own_server_gives_what_the_engine_gives(tmp_path: Path):
    pytest.importorskip("uvicorn", reason="the server needs the extra serve")
    from tests.server.real import running

    pairs = [("the blue", " whale sings"), ("Answer: ", "blue"), ("the \u00e9 \U0001f40b", " \u6df1"), ("which", " whale?")]
    local = small.engine_model()
    with running(small.export(tmp_path / "tiny")) as server:
        made = ServerModel(Client(f"http://127.0.0.1:{server.port}/v1"), "tiny")
        made.require_likelihood(["x"])
        for ours, theirs in zip(local.likelihood(pairs), made.likelihood(pairs), strict=True):
            assert isinstance(theirs, Likelihood) and theirs.logprob == pytest.approx(ours.logprob, abs=1e-4)
            assert theirs.greedy == ours.greedy and not math.isnan(theirs.logprob)
        prompts = [("a/1", "Question: which whale"), ("a/2", "the blue")]
        for asking in (Asking(max_tokens=8), Asking(max_tokens=8, temperature=0.8, seed=4)):
            assert dict(made.generate(prompts, asking)) == dict(local.generate(prompts, asking))
