"""What is evaluated: a model in this process on the inference engine. Its remote counterpart is eval/remote.py, both are a `Model`.

Likelihoods come from eval/score.py, where the choices of one item share their context; answers come from the engine's own requests.
Report section 4.4.1.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

import torch

from rorqual.errors import ConfigError, DataError, NonFiniteError, TokenizerError
from rorqual.eval.encode import Encoder, fitted, windows
from rorqual.eval.score import Scorer
from rorqual.inference.engine import Engine
from rorqual.inference.params import SamplingParams
from rorqual.inference.stops import StopStream
from rorqual.tokenizer.bpe import Tokenizer
from rorqual.tokenizer.chat import Rendered
from rorqual.tokenizer.special import THINK_END

MOST_CACHED = 64
"""Requests that a call hands to the engine at a time."""
MOST_WINDOWS = 32
"""Windows of texts that are scored between two looks at the progress."""
_ALIKE = 64
_SAMPLE = 64


@dataclass(frozen=True)
class Likelihood:
    """Of one continuation: log-probability in nats, whether it is the greedy one, its tokens, whether context was cut to fit."""

    logprob: float
    greedy: bool
    tokens: int
    cut: bool = False


@dataclass(frozen=True)
class TextScore:
    """Of one document: negative log-likelihood in nats over `bytes` bytes of UTF-8."""

    nll: float
    bytes: int
    tokens: int


@dataclass(frozen=True)
class Generation:
    """One answer, without stop string and end token. `finish_reason` "length" means that it was cut off."""

    text: str
    finish_reason: str
    tokens: int
    prompt_cut: bool = False


@dataclass(frozen=True)
class Failure:
    """An item that the model gave nothing for, and why; it is counted and reported, and never a zero."""

    reason: str


@dataclass(frozen=True)
class Asking:
    """How answers are drawn: `n` of each prompt. Temperature 0 is greedy. `chat` renders the prompt as a user's message."""

    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    n: int = 1
    chat: bool = False


Parts = dict[tuple[int, int], float]
"""NLL of windows that are done, by (number of the text, number of the window)."""


class Model(Protocol):
    """What tasks need. Lists are in the order of what was asked; a `Failure` stands where nothing came."""

    name: str

    def describe(self) -> dict[str, Any]:
        """Facts for the record of a run."""
        ...

    def computed(self) -> dict[str, int]:
        """What it did so far, in counts."""
        ...

    def require_likelihood(self, tasks: Sequence[str]) -> None:
        """ConfigError, naming the tasks, where this model cannot score given texts."""
        ...

    def likelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood | Failure]:
        """Of each (context, continuation)."""
        ...

    def text_scores(
        self, texts: Sequence[str], stride: int | None = None, told: Callable[[float], None] | None = None, parts: Parts | None = None
    ) -> list[TextScore | Failure]:
        """Of each whole document; `stride` tokens are scored by each window after the first (None: half a window).

        `told` hears from time to time which share of them is done. `parts` holds what a run that was killed had; what is new is added before
        `told` hears of it.
        """
        ...

    def generate(self, prompts: Sequence[tuple[str, str]], asking: Asking) -> Iterator[tuple[int, list[Generation] | Failure]]:
        """(number, answers) of each (name, prompt), as they end; draws depend on the seed and the name alone."""
        ...


def item_seed(seed: int, name: str) -> int:
    """Seed of one item's draws."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") >> 2


class EngineModel:
    """A model on an engine of this process. `window`: most tokens of one forward (default: the model's context)."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, name: str, *, window: int | None = None, budget: int = 2048) -> None:
        limit = engine.model.config.max_position_embeddings
        self.engine, self.tokenizer, self.name = engine, tokenizer, name
        self.window = min(window or limit, limit, engine.pool.num_blocks * engine.pool.block_size - 2 * engine.pool.block_size)
        if self.window < 2:
            raise ConfigError(f"the window ({self.window} tokens) must hold at least 2; give the engine a larger cache or --window")
        self.encoder = Encoder(tokenizer, engine.model.config.eos_token_id)
        self.scorer = Scorer(engine, budget)

    def describe(self) -> dict[str, Any]:
        """Facts for the record of a run: hashes of tokenizer and configuration, window, whether BOS is put first, number format."""
        config = self.engine.model.config
        return {
            "kind": "engine", "name": self.name, "tokenizer_sha256": self.tokenizer.fingerprint, "window": self.window,
            "bos": bool(self.encoder.start), "dtype": str(self.engine.model.model.norm.weight.dtype).removeprefix("torch."),
            "config_sha256": hashlib.sha256(repr(config).encode()).hexdigest(), "weights_sample_sha256": self._weights,
        }  # fmt: skip

    @cached_property
    def _weights(self) -> str:
        """SHA-256 of names, shapes and the first and last 64 numbers of every tensor: another checkpoint has another one."""
        digest = hashlib.sha256()
        for name, tensor in self.engine.model.state_dict().items():
            flat = tensor.detach().reshape(-1)
            ends = torch.cat([flat[:_SAMPLE], flat[-_SAMPLE:]]).contiguous()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + ends.view(torch.uint8).cpu().numpy().tobytes())
        return digest.hexdigest()

    def computed(self) -> dict[str, int]:
        """Tokens that scoring ran so far."""
        return asdict(self.scorer.computed)

    def require_likelihood(self, tasks: Sequence[str]) -> None:
        """The engine scores any text."""

    # ------------------------------------------------------------------ likelihood

    def likelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood | Failure]:
        """Of each (context, continuation), in nats; NonFiniteError for NaN."""
        requests: list[tuple[list[int], int]] = []
        plans: list[tuple[list[int], list[int], bool]] = []
        for pair in self.encoder.pairs(pairs):
            plus = self._pieces(pair.whole, pair.shared, requests)
            minus = self._pieces(pair.context, pair.shared, requests)[0] if len(pair.context) > pair.shared else []
            plans.append((plus[0], minus, plus[1]))
        scores = self.scorer.score(requests)
        out: list[Likelihood | Failure] = []
        for plus_numbers, minus_numbers, cut in plans:
            values = [value for number in plus_numbers for value in scores[number].logprobs]
            total = math.fsum(values) - math.fsum(value for number in minus_numbers for value in scores[number].logprobs)
            out.append(Likelihood(self._finite(total), all(scores[number].greedy for number in plus_numbers), len(values), cut))
        return out

    def _pieces(self, tokens: list[int], start: int, requests: list[tuple[list[int], int]]) -> tuple[list[int], bool]:
        pieces, cut = fitted(tokens, start, self.window)
        numbers = list(range(len(requests), len(requests) + len(pieces)))
        requests += pieces
        return numbers, cut

    def text_scores(
        self, texts: Sequence[str], stride: int | None = None, told: Callable[[float], None] | None = None, parts: Parts | None = None
    ) -> list[TextScore | Failure]:
        """Of each whole document, by sliding windows; each token is scored exactly once."""
        parts = {} if parts is None else parts
        requests: list[tuple[list[int], int]] = []
        keys: list[tuple[int, int]] = []
        for number, text in enumerate(texts):
            pieces = windows(self.tokenizer.encode_text(text), self.encoder.first, self.window, stride or max(1, self.window // 2))
            for place, piece in enumerate(pieces):
                requests.append(piece)
                keys.append((number, place))
        for start in range(0, len(requests), MOST_WINDOWS):  # the cuts do not depend on what is known
            some, mine = requests[start : start + MOST_WINDOWS], keys[start : start + MOST_WINDOWS]
            if not all(key in parts for key in mine):
                parts |= {key: self._finite(-math.fsum(one.logprobs)) for key, one in zip(mine, self.scorer.score(some), strict=True)}
            if told is not None:
                told((start + len(some)) / len(requests))
        sums: list[list[float]] = [[] for _ in texts]
        counts = [0] * len(texts)
        for (number, place), (tokens, first) in zip(keys, requests, strict=True):
            sums[number].append(parts[number, place])
            counts[number] += len(tokens) - first
        return [TextScore(math.fsum(some), len(text.encode()), count) for text, some, count in zip(texts, sums, counts, strict=True)]

    @staticmethod
    def _finite(value: float) -> float:
        if math.isnan(value):
            raise NonFiniteError("a log-probability is NaN; the weights or an activation are not finite, check the checkpoint")
        return value

    # ------------------------------------------------------------------ generation

    def prompt(self, text: str, asking: Asking) -> tuple[list[int], bool, int]:
        """(ids, whether the prompt was cut on the left, most new tokens): at most half the window is kept for the answer."""
        most = max(1, min(asking.max_tokens, self.window // 2))
        ids = self._rendered(text).ids if asking.chat else self.encoder.context(text)
        room = self.window - most
        if len(ids) <= room:
            return ids, False, most
        if asking.chat:
            raise DataError(
                f"the rendered prompt has {len(ids)} tokens, the window keeps {room} for it; use --max-tokens or a larger model"
            )
        kept = ids[len(ids) - room + len(self.encoder.start) :]
        return [*self.encoder.start, *kept], True, most

    def _rendered(self, text: str) -> Rendered:
        from rorqual.tokenizer import chat, templates

        messages = [{"role": "user", "content": text}]
        style = templates.style_of(self.tokenizer)
        try:
            if style == "template":
                return templates.render_template(self.tokenizer.chat_template or "", messages, self.tokenizer)
            return chat.render(messages, self.tokenizer, style=style)  # type: ignore[arg-type]
        except TokenizerError as error:
            raise ConfigError(f"this model cannot chat: {error}; leave out --chat") from None

    def generate(self, prompts: Sequence[tuple[str, str]], asking: Asking) -> Iterator[tuple[int, list[Generation] | Failure]]:
        """(number, answers) of each (name, prompt) as they end; answers do not depend on the batch or on one another."""
        for first in range(0, len(prompts), MOST_CACHED):
            yield from self._wave(first, prompts[first : first + MOST_CACHED], asking)

    def _wave(self, first: int, prompts: Sequence[tuple[str, str]], asking: Asking) -> Iterator[tuple[int, list[Generation] | Failure]]:
        engine = self.engine
        active: dict[str, _Answers] = {}
        ready: list[tuple[int, str, list[int], bool, int]] = []
        for place, (name, text) in enumerate(prompts, first):
            try:
                ready.append((place, name, *self.prompt(text, asking)))
            except DataError as error:
                yield place, Failure(str(error))
        alike = len(ready) > 2 and ready[0][2][:_ALIKE] == ready[1][2][:_ALIKE]
        made = engine.stats.generation_tokens
        try:
            for number, (place, name, ids, cut, most) in enumerate(ready):
                if number == 1 and alike:  # what the first one read, the others find in the prefix cache
                    while engine.has_work and engine.stats.generation_tokens == made:
                        yield from self._step(active, asking)
                params = SamplingParams(
                    max_tokens=most, temperature=asking.temperature, top_p=asking.top_p, n=asking.n, stop=asking.stop,
                    seed=item_seed(asking.seed, name),
                )  # fmt: skip
                engine.add_request(f"eval {place}", ids, params)
                active[f"eval {place}"] = _Answers(place, [[] for _ in range(asking.n)], cut)
            while engine.has_work:
                yield from self._step(active, asking)
        finally:
            for name in active:
                engine.abort(name)

    def _step(self, active: dict[str, _Answers], asking: Asking) -> Iterator[tuple[int, list[Generation] | Failure]]:
        for out in self.engine.step():
            answers = active[out.request_id]
            answers.tokens[out.index] += out.new_token_ids
            if out.finish_reason is not None:
                answers.reasons[out.index] = out.finish_reason
                if len(answers.reasons) == asking.n:
                    del active[out.request_id]
                    yield answers.number, [self._generation(answers, choice, asking) for choice in range(asking.n)]

    def _generation(self, answers: _Answers, choice: int, asking: Asking) -> Generation:
        ids, reason = answers.tokens[choice], answers.reasons[choice]
        shown = ids[:-1] if reason == "stop" and ids and ids[-1] in self.engine.end_ids else ids
        stream = StopStream(self._bytes, asking.stop)
        text = stream.add(shown) + stream.finish()
        if asking.chat:  # what is judged is the answer, not the reasoning before it
            _, closed, after = text.rpartition(THINK_END)
            text = after if closed else "" if self._reasons else text
        return Generation(text, reason, len(ids), answers.cut)

    @cached_property
    def _reasons(self) -> bool:
        """Whether answers of a chat begin inside their reasoning."""
        return self._rendered("").reasoning

    def _bytes(self, token: int) -> bytes:
        try:
            return self.tokenizer.token_bytes(token)
        except TokenizerError:  # a hole of the vocabulary
            return b""


class _Answers:
    def __init__(self, number: int, tokens: list[list[int]], cut: bool) -> None:
        self.number, self.tokens, self.cut = number, tokens, cut
        self.reasons: dict[int, str] = {}
