"""A model that says what it is told to, and counts what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rorqual.eval.models import Asking, Failure, Generation, Likelihood, TextScore


class Scripted:
    """`answer` maps (name, prompt) to a text, or a list of texts, or a Failure; `score` a (context, continuation) to a log-probability."""

    name = "scripted"

    def __init__(
        self, answer: Callable[[str, str], Any] = lambda name, prompt: "", score: Callable[[str, str], Any] = lambda context, end: -1.0
    ) -> None:
        self._answer, self._score = answer, score
        self.asked: list[str] = []
        self.prompts: list[str] = []

    def describe(self) -> dict[str, Any]:
        return {"kind": "scripted", "name": self.name}

    def computed(self) -> dict[str, int]:
        return {"asked": len(self.asked)}

    def require_likelihood(self, tasks: Sequence[str]) -> None:
        pass

    def likelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood | Failure]:
        out: list[Likelihood | Failure] = []
        for context, end in pairs:
            self.asked.append(context)
            value = self._score(context, end)
            out.append(value if isinstance(value, Failure | Likelihood) else Likelihood(value, value > -1, 1))
        return out

    def text_scores(
        self, texts: Sequence[str], stride: int | None = None, told: Any = None, parts: Any = None
    ) -> list[TextScore | Failure]:
        return [TextScore(2.0 * len(text.encode()), len(text.encode()), len(text)) for text in texts]

    def generate(self, prompts: Sequence[tuple[str, str]], asking: Asking) -> Iterator[tuple[int, list[Generation] | Failure]]:
        for number, (name, prompt) in enumerate(prompts):
            self.asked.append(name)
            self.prompts.append(prompt)
            value = self._answer(name, prompt)
            if isinstance(value, Failure):
                yield number, value
                continue
            texts = value if isinstance(value, list) else [value] * asking.n
            yield number, [Generation(text, "stop", len(text)) for text in texts]
