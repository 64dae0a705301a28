"""A model behind an OpenAI-compatible server, asked by /v1/completions and /v1/chat/completions.

Likelihoods need the prompt's own log-probabilities (`echo` with `logprobs`), which few servers give; one that does not is refused by
name before any item. A request that fails for good is a counted `Failure`. Requests run on several threads; answers do not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from rorqual.errors import ConfigError
from rorqual.eval.models import Asking, Failure, Generation, Likelihood, Parts, TextScore, item_seed
from rorqual.inference.client import Client, ServerError

Found = TypeVar("Found")
MOST_STOPS = 4
"""Stop strings that OpenAI's interface takes; text is cut at all of them here."""


class _Odd(Exception):
    """An answer that lacks what was asked for."""


class ServerModel:
    """`model` is the name that the server knows it by; `parallel` requests at a time."""

    def __init__(self, client: Client, model: str, parallel: int = 8) -> None:
        self._client, self.name, self._parallel = client, model, max(1, parallel)

    def describe(self) -> dict[str, Any]:
        """Facts for the record of a run; the server's tokenizer is not known."""
        return {"kind": "server", "name": self.name, "url": self._client.url, "tokenizer_sha256": None}

    def computed(self) -> dict[str, int]:
        """Requests so far, tries after the first, and requests that failed for good."""
        return {"requests": self._client.requests, "retried": self._client.retried, "failed": self._client.failed}

    def require_likelihood(self, tasks: Sequence[str]) -> None:
        """ConfigError, naming the tasks, where the server does not echo log-probabilities of a prompt."""
        try:
            self._echo("The capital of France is Paris")
        except (_Odd, ServerError) as error:
            raise ConfigError(
                f"{', '.join(tasks)} need the log-probabilities of given text (echo with logprobs at /v1/completions), which "
                f"{self._client.url} does not give: {error}; evaluate the model's folder, or tasks that generate"
            ) from None

    # ------------------------------------------------------------------ likelihood

    def likelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood | Failure]:
        """Of each (context, continuation): one request with echo, spaces at the context's end counted to the continuation."""
        return self._all([lambda pair=pair: self._pair(*pair) for pair in pairs])  # type: ignore[misc]

    def _pair(self, context: str, continuation: str) -> Likelihood:
        kept = context.rstrip()
        whole = kept + context[len(kept) :] + continuation
        tokens, values, best, ends = self._echo(whole)
        if ends[-1] == len(whole):
            start = next(number for number, end in enumerate(ends) if end > len(kept))
        else:  # characters in several tokens: offsets are of no use
            start = len(self._echo(kept)[0]) if kept else 0
        start = max(start, 1 if values[0] is None else 0)
        if start >= len(tokens):
            raise _Odd("the continuation adds no token that could be scored")
        return Likelihood(math.fsum(value or 0.0 for value in values[start:]), all(best[start:]), len(tokens) - start)

    def text_scores(
        self, texts: Sequence[str], stride: int | None = None, told: Callable[[float], None] | None = None, parts: Parts | None = None
    ) -> list[TextScore | Failure]:
        """Of each whole document, which the server must take in one piece; `stride`, `told` and `parts` are of no use here."""
        return self._all([lambda text=text: self._text(text) for text in texts])  # type: ignore[misc]

    def _text(self, text: str) -> TextScore:
        if not text:
            return TextScore(0.0, 0, 0)
        tokens, values, _, _ = self._echo(text)
        known = [value for value in values if value is not None]
        first = len(tokens[0].encode()) if values[0] is None else 0  # without BOS the first token has no probability
        return TextScore(-math.fsum(known), max(0, len(text.encode()) - first), len(known))

    def _echo(self, text: str) -> tuple[list[str], list[float | None], list[bool], list[int]]:
        """(tokens, log-probabilities, whether each is the most likely, where each ends in `text`) of a text's own tokens."""
        body = {"model": self.name, "prompt": text, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
        choice = self._choice(self._client.post("/completions", body))
        found, echoed = choice.get("logprobs"), choice.get("text")
        if not isinstance(found, dict) or not isinstance(echoed, str):
            raise _Odd("the answer has no logprobs")
        tokens, values, offsets = (_list(found.get(key)) for key in ("tokens", "token_logprobs", "text_offset"))
        if not len(tokens) == len(values) == len(offsets) >= 2:
            raise _Odd("logprobs lack tokens, token_logprobs or text_offset")
        if text not in echoed and not text.startswith(tokens[0]):
            raise _Odd("the prompt was not echoed")
        tokens, values, offsets = tokens[:-1], values[:-1], [*offsets]  # the last one is the new token
        base = max(0, echoed.find(text))
        ends = [offset - base for offset in offsets[1:]]
        begins = next((number for number, end in enumerate(ends) if end > 0), 0)  # a BOS that is shown
        tops = found.get("top_logprobs") or [None] * len(tokens)
        best = []
        for token, value, top in zip(tokens, values, tops, strict=False):
            highest = max((v for v in top.values() if isinstance(v, int | float)), default=None) if isinstance(top, dict) else None
            best.append(value is None or (highest is not None and value >= highest - 1e-9 and (token in top or value == highest)))
        if any(value is not None and not isinstance(value, int | float) for value in values) or any(v is None for v in values[1:]):
            raise _Odd("the prompt's log-probabilities are missing")
        return tokens[begins:], values[begins:], best[begins:], ends[begins:]

    # ------------------------------------------------------------------ generation

    def generate(self, prompts: Sequence[tuple[str, str]], asking: Asking) -> Iterator[tuple[int, list[Generation] | Failure]]:
        """(number, answers) of each (name, prompt) as they come back, `parallel` requests at a time."""
        with ThreadPoolExecutor(self._parallel) as pool:
            waiting: dict[Future[list[Generation] | Failure], int] = {}
            todo = iter(enumerate(prompts))
            try:
                while True:
                    for number, (name, text) in todo:
                        waiting[pool.submit(self._safe, lambda n=name, t=text: self._answers(n, t, asking))] = number  # type: ignore[misc]
                        if len(waiting) >= 2 * self._parallel:
                            break
                    if not waiting:
                        return
                    for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                        yield waiting.pop(done), done.result()
            finally:
                for future in waiting:
                    future.cancel()

    def _answers(self, name: str, text: str, asking: Asking) -> list[Generation]:
        return [self._answer(text, asking, item_seed(asking.seed, f"{name}:{choice}" if choice else name)) for choice in range(asking.n)]

    def _answer(self, text: str, asking: Asking, seed: int) -> Generation:
        body: dict[str, Any] = {
            "model": self.name, "max_tokens": asking.max_tokens, "temperature": asking.temperature, "top_p": asking.top_p,
            "seed": seed,
        }  # fmt: skip
        if asking.stop:
            body["stop"] = list(asking.stop[:MOST_STOPS])
        if asking.chat:
            reply = self._client.post("/chat/completions", {**body, "messages": [{"role": "user", "content": text}]})
        else:
            reply = self._client.post("/completions", {**body, "prompt": text})
        choice = self._choice(reply)
        message = choice.get("message")
        answer = message.get("content") or "" if asking.chat and isinstance(message, dict) else choice.get("text")
        if not isinstance(answer, str):
            raise _Odd("the answer has no text")
        cuts = [at for stop in asking.stop if (at := answer.find(stop)) >= 0]
        usage = reply.get("usage")
        tokens = usage.get("completion_tokens", 0) if isinstance(usage, dict) else 0
        return Generation(answer[: min(cuts)] if cuts else answer, "stop" if cuts else str(choice.get("finish_reason")), tokens)

    @staticmethod
    def _choice(reply: dict[str, Any]) -> dict[str, Any]:
        choices = reply.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise _Odd("the answer has no choices")
        return choices[0]

    # ------------------------------------------------------------------ threads

    def _all(self, calls: Sequence[Callable[[], Found]]) -> list[Found | Failure]:
        with ThreadPoolExecutor(self._parallel) as pool:
            return list(pool.map(self._safe, calls))

    @staticmethod
    def _safe(call: Callable[[], Found]) -> Found | Failure:
        try:
            return call()
        except (ServerError, _Odd) as error:
            return Failure(str(error))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
