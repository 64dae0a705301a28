"""How one prompt is continued: SamplingParams, with vLLM's and OpenAI's names. No torch.

Bad values are refused here, before any work, so that a server can answer with the field and a library user sees the same text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rorqual.errors import ConfigError

GREEDY_BELOW = 1e-5
MAX_STOP_STRINGS = 64


@dataclass(frozen=True)
class StructuredOutputs:
    """What the answer must be; exactly one field is given.

    `json` is a JSON schema (an object, or its text), `regex` a regular expression of the whole answer, `grammar` a Lark grammar,
    `choice` the answers to choose from, `json_object` any JSON object.
    """

    json: Mapping[str, Any] | str | None = None
    regex: str | None = None
    grammar: str | None = None
    choice: tuple[str, ...] | None = None
    json_object: bool = False

    def __post_init__(self) -> None:
        given = [name for name in ("json", "regex", "grammar", "choice") if getattr(self, name) is not None]
        given += ["json_object"] if self.json_object else []
        if len(given) != 1:
            raise ConfigError(
                f"structured outputs take exactly one of json, regex, grammar, choice, json_object; {', '.join(given) or 'none'} given"
            )
        if self.choice is not None and (
            isinstance(self.choice, str) or not self.choice or not all(isinstance(c, str) for c in self.choice)
        ):
            raise ConfigError(f"choice ({self.choice!r}) must be a list of one or more strings")


@dataclass(frozen=True)
class SamplingParams:
    """How one prompt is continued. `top_k` 0, `top_p` 1, `min_p` 0, penalties 0 and `repetition_penalty` 1 are off.

    `n` choices of one prompt draw from streams of their own under one seed. `max_tokens` None is up to the model's context. Generation
    stops at the model's end token (unless `ignore_eos`), at `stop_token_ids` and where one of the strings `stop` is complete; none of
    these before `min_tokens` tokens. `presence_penalty` and `frequency_penalty` look at the answer so far, `repetition_penalty` at the
    prompt too. `logit_bias` maps ids to what is added to their logits. `logprobs` asks for the log-probability of every token of the
    answer and of that many most likely ones beside it, `prompt_logprobs` for the prompt's; both are of the model's own distribution,
    before temperature, filters, biases and penalties.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    n: int = 1
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured_outputs: StructuredOutputs | None = None

    def __post_init__(self) -> None:
        for name, least in (("top_k", 0), ("n", 1), ("max_tokens", 1), ("min_tokens", 0), ("logprobs", 0), ("prompt_logprobs", 0)):
            value = getattr(self, name)
            if not (value is None and name in ("max_tokens", "logprobs", "prompt_logprobs")) and (type(value) is not int or value < least):
                raise ConfigError(f"{name} ({value!r}) must be a whole number of at least {least}")
        if type(self.seed) is not int:
            raise ConfigError(f"seed ({self.seed!r}) must be a whole number")
        if not (_finite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature ({self.temperature}) must be 0 (greedy) or a positive number")
        if not (_finite(self.top_p) and 0 < self.top_p <= 1):
            raise ConfigError(f"top_p ({self.top_p}) must be above 0 and at most 1 (off)")
        if not (_finite(self.min_p) and 0 <= self.min_p <= 1):
            raise ConfigError(f"min_p ({self.min_p}) must be from 0 (off) to 1")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if not (_finite(value) and -2 <= value <= 2):
                raise ConfigError(f"{name} ({value!r}) must be a number from -2 to 2")
        if not (_finite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ConfigError(f"repetition_penalty ({self.repetition_penalty}) must be a positive number; 1 is off")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ConfigError(f"min_tokens ({self.min_tokens}) must be at most max_tokens ({self.max_tokens})")
        self._check_lists()

    def _check_lists(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        if not all(isinstance(text, str) and text for text in self.stop) or len(self.stop) > MAX_STOP_STRINGS:
            raise ConfigError(f"stop ({list(self.stop)!r}) must be at most {MAX_STOP_STRINGS} strings, none of them empty")
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        if not all(type(token) is int for token in self.stop_token_ids):
            raise ConfigError(f"stop_token_ids ({list(self.stop_token_ids)!r}) must be token ids")
        for token, bias in self.logit_bias.items():
            if type(token) is not int or token < 0 or not (_finite(bias) and -100 <= bias <= 100):
                raise ConfigError(f"logit_bias ({token!r}: {bias!r}) must map token ids to numbers from -100 to 100")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, without a draw."""
        return self.temperature < GREEDY_BELOW

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed by what the answer or the request says, before any filter."""
        return bool(self.logit_bias or self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0 or self.min_tokens)

    @property
    def filters(self) -> bool:
        """Whether unlikely tokens are left out of the draw."""
        return not self.greedy and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
