"""Groups of answers from a server by URL: ours, which follows the trainer's weights and tells the chosen experts, or another one.

    rollout = RemoteRollout("http://127.0.0.1:8000", tokenizer, api_key="...", style="r1", end_ids=[1])
    rollout.publish(Path("runs/rl/published"), "step-12")
    groups = rollout.sample(prompts, config, keys)

Our server (`rorqual serve --rl --api-key ...`) reads each version from a folder that both machines see. Another OpenAI-compatible server
keeps the weights that it has; it must take prompts as token ids and return token ids (vLLM's `return_token_ids`). Its experts are not
known, so nothing is replayed, and log-probabilities come from the trainer alone.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rorqual.errors import DataError
from rorqual.inference.client import Client, ServerError
from rorqual.posttrain.presets import GRPOConfig
from rorqual.posttrain.rollout import Answer, Prompt, parse, up_to_end
from rorqual.tokenizer.bpe import Tokenizer


class RemoteRollout:
    """Asks a server; `follows` says whether it is one of ours, whose weights can be changed."""

    def __init__(
        self, url: str, tokenizer: Tokenizer | None, *, style: str = "v3", end_ids: Sequence[int] = (), api_key: str | None = None,
        timeout: float = 3600.0, parallel: int = 8,
    ) -> None:  # fmt: skip
        self.tokenizer, self.style, self.end_ids, self.parallel = tokenizer, style, frozenset(end_ids), parallel
        self._client = Client(url.rstrip("/").removesuffix("/v1"), api_key=api_key, timeout=timeout)
        self.version: str | None = None
        try:
            self.version, self.follows = str(self._client.get("/rl/weights")["version"]), True
        except ServerError as error:
            if error.status not in (404, 405):
                raise
            self.follows = False

    def publish(self, folder: Path, version: str) -> None:
        """Has our server load the weights of a folder that it sees."""
        self._client.post("/rl/weights", {"folder": str(folder.resolve()), "version": version})
        self.version = version

    def sample(self, prompts: Sequence[Prompt], config: GRPOConfig, keys: Sequence[int]) -> list[list[Answer]]:
        """Answers of every prompt; DataError where a server does not tell token ids."""
        settings = {
            "n": config.group, "max_tokens": config.max_new_tokens, "temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k,
            "stop": list(config.stop),
        }  # fmt: skip
        if self.follows:
            body = {"prompts": [prompt.ids for prompt in prompts], "seeds": list(keys), "version": self.version, **settings}
            found = [
                [_ours(prompt, one) for one in group]
                for prompt, group in zip(prompts, self._client.post("/rl/generate", body)["answers"], strict=True)
            ]
        else:
            with ThreadPoolExecutor(self.parallel, thread_name_prefix="rollout") as pool:
                found = list(pool.map(lambda pair: self._theirs(pair[0], pair[1], settings), zip(prompts, keys, strict=True)))
        return [
            [parse(answer, self.tokenizer, self.style, prompt.reasoning, self.end_ids) for answer in group]
            for prompt, group in zip(prompts, found, strict=True)
        ]

    def _theirs(self, prompt: Prompt, key: int, settings: Mapping[str, Any]) -> list[Answer]:
        body = {"prompt": prompt.ids, "seed": key & (2**31 - 1), "return_token_ids": True, **settings, "top_k": settings["top_k"] or -1}
        made = []
        for choice in self._client.post("/v1/completions", body).get("choices", ()):
            ids = choice.get("token_ids")
            if not isinstance(ids, list):
                raise DataError(
                    f"{self._client.url} answers without token_ids, and text alone does not tell which tokens were drawn; use a server that takes "
                    "return_token_ids (vLLM, or rorqual serve)"
                )
            ids, cut = up_to_end(ids, self.end_ids, int(settings["max_tokens"]))
            made.append(Answer(prompt.ids, ids, cut and choice.get("finish_reason") == "length"))
        if len(made) != settings["n"]:
            raise DataError(f"{self._client.url} gave {len(made)} answers where {settings['n']} were asked for")
        return made


def _ours(prompt: Prompt, one: Mapping[str, Any]) -> Answer:
    logprobs = torch.tensor(one["logprobs"], dtype=torch.float32)
    return Answer(prompt.ids, list(one["token_ids"]), one["finish_reason"] == "length", logprobs=logprobs, routes=unpacked(one["routes"]))


def packed(routes: Tensor | None) -> dict[str, Any] | None:
    """Chosen experts for the wire: base64 of little-endian int16."""
    if routes is None:
        return None
    return {
        "shape": list(routes.shape),
        "data": base64.b64encode(routes.to(torch.int16).contiguous().numpy().astype("<i2").tobytes()).decode(),
    }


def unpacked(routes: Mapping[str, Any] | None) -> Tensor | None:
    """The inverse of `packed`; None where the model has no routed experts."""
    if routes is None or 0 in routes["shape"]:
        return None
    return torch.frombuffer(bytearray(base64.b64decode(routes["data"])), dtype=torch.int16).view(routes["shape"])
