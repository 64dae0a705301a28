"""What a trainer elsewhere needs of a server: to load a version of the weights, and answers by token ids with log-probabilities and experts.

    GET  /rl/weights                                        {"version": "", "routes": true}
    POST /rl/weights  {"folder": "runs/rl/hf", "version": "step-12"}
    POST /rl/generate {"prompts": [[0, 5]], "seeds": [17], "n": 8, "max_tokens": 64, "version": "step-12"}

Only where `rorqual serve --rl` asked for them, and only with a key: they read folders of this machine and change what everybody is
served. Weights change between requests, never under one: 409 while any is unfinished. Experts travel as base64 of little-endian int16,
[tokens of prompt and answer but the last, MoE layers, chosen]. Log-probabilities are of the model's own distribution.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from rorqual.checkpoint import hf
from rorqual.errors import ConfigError, RorqualError
from rorqual.inference.engine import Engine
from rorqual.inference.params import SamplingParams
from rorqual.posttrain.remote import packed
from rorqual.server import requests as asked
from rorqual.server.answers import dumps
from rorqual.server.errors import ApiError

if TYPE_CHECKING:
    from rorqual.server.app import Service

Ids = Annotated[list[int], Field(min_length=1, max_length=1_000_000)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())


class WeightsRequest(_Body):
    """A model folder of this machine, of the served model's shape, and the name that its weights go by."""

    folder: str
    version: Annotated[str, Field(max_length=200)]


class RolloutRequest(_Body):
    """`seeds`: one per prompt. `version`: refused where the server has other weights; null takes what is there."""

    prompts: Annotated[list[Ids], Field(min_length=1, max_length=4096)]
    seeds: list[int]
    n: Annotated[int, Field(ge=1, le=1024)] = 1
    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: list[str] = []
    version: str | None = None


class Rollouts:
    """The routes over one engine; `version` is the name of the weights that are loaded, "" for those it began with."""

    def __init__(self, service: Service, engine: Engine) -> None:
        if not service.gate.limits.api_keys:
            raise ConfigError(
                "--rl needs --api-key: its routes read folders of this machine and change the weights that everybody is served"
            )
        self.service, self.engine, self.version = service, engine, ""
        self._loading = asyncio.Lock()

    async def told(self, request: Request) -> Response:
        """GET /rl/weights."""
        self.service.gate.enter(request)
        return _json({"version": self.version, "routes": self.engine.storage.routes is not None})

    async def load(self, request: Request) -> Response:
        """POST /rl/weights."""
        self.service.gate.enter(request)
        body = asked.checked(WeightsRequest, await self.service.gate.body(request))
        async with self._loading:
            try:
                given = await asyncio.to_thread(self._read, Path(body.folder))
            except RorqualError as error:
                raise ApiError(400, str(error), param="folder") from None
            await self._in_engine(lambda engine: self._replace(engine, given))
            self.version = body.version
        return _json({"version": self.version, "tensors": len(given)})

    async def generate(self, request: Request) -> Response:
        """POST /rl/generate."""
        self.service.gate.enter(request)
        body = asked.checked(RolloutRequest, await self.service.gate.body(request))
        if body.version is not None and body.version != self.version:
            raise ApiError(
                409, f"the weights are version {self.version!r}, asked for is {body.version!r}; load them first", code="other_version"
            )
        if len(body.seeds) != len(body.prompts):
            raise ApiError(400, f"{len(body.seeds)} seeds for {len(body.prompts)} prompts; give one each", param="seeds")
        try:
            params = [
                SamplingParams(n=body.n, max_tokens=body.max_tokens, temperature=body.temperature, top_p=body.top_p, top_k=body.top_k, seed=seed,
                               stop=tuple(body.stop), logprobs=0)
                for seed in body.seeds
            ]  # fmt: skip
        except ConfigError as error:
            raise ApiError(400, str(error)) from None
        version = self.version
        answers = await asyncio.gather(*[self._one(prompt, each) for prompt, each in zip(body.prompts, params, strict=True)])
        return _json({"version": version, "answers": answers})

    async def _one(self, prompt: list[int], params: SamplingParams) -> list[dict[str, Any]]:
        ticket = await self.service.worker.submit([prompt], params)
        found: list[dict[str, Any]] = [{"token_ids": [], "logprobs": [], "finish_reason": "", "routes": None} for _ in range(params.n)]
        try:
            async for _, output in ticket.outputs():
                one = found[output.index]
                one["token_ids"] += output.new_token_ids
                one["logprobs"] += [seen.logprob for seen in output.new_logprobs or ()]
                if output.finish_reason is not None:
                    one["finish_reason"], one["routes"] = output.finish_reason, packed(output.routed_experts)
        finally:
            ticket.close()
        return found

    # ------------------------------------------------------------------ weights

    def _read(self, folder: Path) -> Mapping[str, torch.Tensor]:
        """The folder's tensors, checked against the served model's."""
        ours = self.engine.model.state_dict()
        given = hf.load(folder)[0].state_dict()
        wrong = sorted(
            name for name in ours.keys() | given.keys() if name not in ours or name not in given or ours[name].shape != given[name].shape
        )
        if wrong:
            raise ConfigError(f"{folder} is not of the served model's shape: {', '.join(wrong[:3])} ({len(wrong)} tensors) are missing, extra or of another shape")  # fmt: skip
        return given

    @torch.no_grad()
    def _replace(self, engine: Any, given: Mapping[str, torch.Tensor]) -> None:
        """In the engine's thread."""
        if engine.has_work:
            raise ApiError(409, "requests are unfinished; weights are changed between requests only", code="busy")
        for name, tensor in engine.model.state_dict().items():
            tensor.copy_(given[name])
        engine.reset_prefix_cache()

    async def _in_engine(self, work: Callable[[Any], None]) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def run(engine: Any) -> None:
            try:
                work(engine)
            except Exception as error:
                loop.call_soon_threadsafe(done.set_exception, error)
            else:
                loop.call_soon_threadsafe(done.set_result, None)

        self.service.worker.order(run)
        await done


def add_routes(app: FastAPI, engine: Engine) -> None:
    """Adds the routes to an application; ConfigError where it asks for no key."""
    rollouts = Rollouts(app.state.service, engine)
    for path, route, method in (
        ("/rl/weights", rollouts.told, "GET"), ("/rl/weights", rollouts.load, "POST"), ("/rl/generate", rollouts.generate, "POST"),
    ):  # fmt: skip
        app.add_api_route(path, route, methods=[method], response_class=Response, include_in_schema=False)


def _json(value: object) -> Response:
    return Response(dumps(value), 200, media_type="application/json")
