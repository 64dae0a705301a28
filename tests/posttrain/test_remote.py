"""Answers from servers: what another one must give, experts over the wire; ours is tested in tests/server/test_rl.py."""

import pytest
import torch

from rorqual.errors import DataError
from rorqual.inference.client import ServerError
from rorqual.posttrain.remote import RemoteRollout, packed, unpacked
from rorqual.posttrain.rollout import Prompt
from tests.posttrain.scenes import config


def _another(monkeypatch, choices):
    asked = []

    def get(self, path):
        raise ServerError("no such route", 404)

    def post(self, path, body):
        asked.append((path, dict(body)))
        return {"choices": choices}

    monkeypatch.setattr("rorqual.posttrain.remote.Client.get", get)
    monkeypatch.setattr("rorqual.posttrain.remote.Client.post", post)
    return RemoteRollout("http://localhost:9/v1", None, end_ids=[1]), asked


def test_another_server_gives_ids_and_nothing_to_replay(monkeypatch):
    choices = [{"token_ids": [5, 1, 9], "finish_reason": "stop"}, {"token_ids": [5] * 10, "finish_reason": "length"}]
    rollout, asked = _another(monkeypatch, choices)
    groups = rollout.sample([Prompt([3, 4])], config(group=2), [2**40 + 7])
    assert not rollout.follows and [(a.ids, a.cut, a.routes, a.logprobs) for a in groups[0]] == [
        ([5, 1], False, None, None),
        ([5] * 10, True, None, None),
    ]
    path, body = asked[0]
    assert path == "/v1/completions" and body["prompt"] == [3, 4] and body["seed"] == 7 and body["return_token_ids"] and body["n"] == 2


@pytest.mark.parametrize(("choices", "why"), [([{"text": "a"}] * 2, "without token_ids"), ([{"token_ids": [1]}], "gave 1 answers where 2")])
def test_servers_that_do_not_tell_enough_are_refused(monkeypatch, choices, why):
    rollout, _ = _another(monkeypatch, choices)
    with pytest.raises(DataError, match=why):
        rollout.sample([Prompt([3])], config(group=2), [0])


def test_experts_survive_the_wire():
    routes = torch.arange(24, dtype=torch.int16).view(4, 3, 2) - 1
    assert torch.equal(unpacked(packed(routes)), routes)
    assert packed(None) is None and unpacked(None) is None and unpacked({"shape": [4, 0, 2], "data": ""}) is None
