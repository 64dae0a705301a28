"""The trainer's routes: a key is needed, weights change between requests alone, answers equal the engine's in process, a run over the wire."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("fastapi", reason="the server needs the extra serve")
httpx = pytest.importorskip("httpx", reason="the server is asked over HTTP")

from rorqual.checkpoint import hf  # noqa: E402
from rorqual.cli.main import main  # noqa: E402
from rorqual.errors import ConfigError  # noqa: E402
from rorqual.inference.engine import Engine  # noqa: E402
from rorqual.inference.params import SamplingParams  # noqa: E402
from rorqual.posttrain.grpo import run_grpo  # noqa: E402
from rorqual.posttrain.remote import unpacked  # noqa: E402
from rorqual.posttrain.rollout import LocalRollout, Prompt  # noqa: E402
from rorqual.server.app import create_app  # noqa: E402
from rorqual.server.limits import Limits  # noqa: E402
from rorqual.server.rl import add_routes  # noqa: E402
from tests.posttrain.scenes import config  # noqa: E402
from tests.posttrain.test_grpo import JUDGES, questions, run_of, train_lines  # noqa: E402
from tests.posttrain.tiny_chat import write_model  # noqa: E402
from tests.server.house import served  # noqa: E402
from tests.server.real import running  # noqa: E402

KEY = {"authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("rl"))


def _ask(folder, work):
    """Runs an async function with a client of an application over a fresh engine."""

    async def go():
        engine = Engine(hf.load(folder)[0], speculative=0, vocab_limit=256, enable_return_routed_experts=True)
        app = create_app(engine, served(), Limits(api_keys=("secret",)))
        add_routes(app, engine)
        app.state.service.worker.start()
        try:
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                client.engine = engine
                return await work(client)
        finally:
            app.state.service.worker.stop()

    return asyncio.run(go())


def test_nobody_without_a_key(folder):
    async def work(client):
        for method, path in (("GET", "/rl/weights"), ("POST", "/rl/weights"), ("POST", "/rl/generate")):
            assert (await client.request(method, path, json={})).status_code == 401

    _ask(folder, work)
    app = create_app(Engine(hf.load(folder)[0], speculative=0), served(), Limits())
    with pytest.raises(ConfigError, match="--rl needs --api-key"):
        add_routes(app, app.state.service.worker.engine)
    assert main(["serve", str(folder), "--rl", "--port", "0"]) == 1


def test_answers_are_the_engines_with_their_experts(folder):
    settings = config(group=3, max_new_tokens=8)
    prompts = [Prompt([0, 5, 9]), Prompt([0, 7])]
    local = LocalRollout(hf.load(folder)[0], None)
    local.llm.engine.runner._vocab_limit = local.llm.engine._vocab_limit = 256
    expected = local.sample(prompts, settings, [4, 2**50])

    async def work(client):
        body = {"prompts": [p.ids for p in prompts], "seeds": [4, 2**50], "n": 3, "max_tokens": 8}
        return (await client.post("/rl/generate", json=body, headers=KEY)).json()

    found = _ask(folder, work)
    assert found["version"] == ""
    for group, theirs in zip(expected, found["answers"], strict=True):
        for one, other in zip(group, theirs, strict=True):
            assert one.ids == other["token_ids"] and torch.equal(one.logprobs, torch.tensor(other["logprobs"], dtype=torch.float32))
            assert torch.equal(one.routes, unpacked(other["routes"]))


def test_weights_change_between_requests_alone(folder, tmp_path):
    other = hf.load(folder)[0]
    with torch.no_grad():
        other.head_weight.mul_(-1)
    changed = hf.export(other, folder, tmp_path / "changed")
    wrong = write_model(tmp_path / "wrong", hidden_size=32)

    async def work(client):
        ask = {"prompts": [[0, 5, 9]], "seeds": [1], "n": 1, "max_tokens": 8}

        async def generate(**more):
            return await client.post("/rl/generate", json=ask | more, headers=KEY)

        async def load(place, version="v1"):
            return await client.post("/rl/weights", json={"folder": str(place), "version": version}, headers=KEY)

        before = (await generate()).json()
        assert (await load(wrong)).status_code == 400 and (await load(tmp_path / "none")).status_code == 400
        client.engine.add_request("other", [0, 5], SamplingParams(max_tokens=4))
        assert (await load(changed)).status_code == 409
        client.engine.abort("other")
        assert (await load(changed)).json()["version"] == "v1"
        assert (await client.get("/rl/weights", headers=KEY)).json() == {"version": "v1", "routes": True}
        after = (await generate(version="v1")).json()
        assert after["answers"] != before["answers"] and (await generate(version="v0")).status_code == 409
        for bad in ({"seeds": []}, {"prompts": []}, {"n": 0}, {"temperature": -1.0}, {"more": 1}, {"prompts": [[10**9]]}):
            assert (await generate(**bad)).status_code == 400, bad

    _ask(folder, work)


@pytest.mark.slow
def test_a_run_over_the_wire_equals_one_in_process(folder, tmp_path):
    run = run_of(folder, steps=3)
    run_grpo(run, tmp_path / "here", problems=questions(), judges=JUDGES, progress=False)
    with running(folder, "--rl", "--api-key", "secret", "--speculative", "off") as server:
        there = replace(run, rollout_url=f"http://127.0.0.1:{server.port}")
        run_grpo(there, tmp_path / "there", problems=questions(), judges=JUDGES, progress=False, api_key="secret")
    ours, theirs = hf.load(tmp_path / "here" / "hf")[0].state_dict(), hf.load(tmp_path / "there" / "hf")[0].state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert json.dumps(train_lines(tmp_path / "here")) == json.dumps(train_lines(tmp_path / "there"))
