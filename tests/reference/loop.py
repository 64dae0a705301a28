"""The simple generation loop: batched, greedy or sampled, plain or speculative, with the same tokens whichever way it runs.

    out = generate(model, [[0, 5, 7]], SamplingParams(max_tokens=32, temperature=0.7), num_drafts=1)
    out.completions[0].token_ids

    loop = Generator(model, prompts, params)      # the same, step by step, as streaming needs it
    while not loop.done:
        for delta in loop.step(): ...

Prompts are read in chunks, rows with equal chunks together, so there is no padding. Every answer is a function of (weights,
prompt, params, choice index), never of chunk size, cached prefix or neighbours (field case F11). Shape letters: b rows,
s positions, m model width, k drafts, v vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rorqual.config import ModelConfig
from rorqual.errors import ConfigError, DataError
from rorqual.inference.sampler import SamplingParams, sample
from rorqual.model.transformer import CausalLM
from tests.reference.cache import ContiguousCache, RowCache
from tests.reference.drafter import Drafter, MTPDrafter
from tests.reference.sequence import Sequence

CHUNK_SIZE = 256
_PREFILL_TOKENS = 2048  # of all rows of one forward


@dataclass(frozen=True)
class Completion:
    """One choice of prompt `index`. `token_ids` ends with the stop token where `finish_reason` is "stop"."""

    index: int
    choice: int
    token_ids: list[int]
    finish_reason: str


@dataclass(frozen=True)
class Delta:
    """Tokens that one step added to one sequence; `finish_reason` is None while it goes on."""

    index: int
    choice: int
    token_ids: list[int]
    finish_reason: str | None


@dataclass
class GenerationStats:
    """Counts and seconds of one call. A row step is one row's share of a decoding forward; drafts count if their place was decided."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    decoded_tokens: int = 0
    row_steps: int = 0
    drafts: int = 0
    accepted: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted share of the drafts; None without any."""
        return self.accepted / self.drafts if self.drafts else None

    @property
    def tokens_per_step(self) -> float | None:
        """Tokens that one forward gave a row, after the prompt's own; 1 without speculation."""
        return self.decoded_tokens / self.row_steps if self.row_steps else None

    @property
    def tokens_per_second(self) -> float | None:
        """All rows' tokens over the seconds after the prompts were read."""
        return self.decoded_tokens / self.decode_seconds if self.decode_seconds else None


@dataclass(frozen=True)
class Generation:
    """Completions in order of (prompt, choice), and what making them took."""

    completions: list[Completion]
    stats: GenerationStats


def generate(
    model: CausalLM,
    prompts: Many[Many[int]],
    params: SamplingParams | Many[SamplingParams] = SamplingParams(),  # noqa: B008  (frozen)
    *,
    vocab_limit: int | None = None,
    num_drafts: int = 0,
    drafter: Drafter | None = None,
    cache: RowCache | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Generation:
    """Continues every prompt; see `Generator` for the arguments."""
    loop = Generator(
        model, prompts, params, vocab_limit=vocab_limit, num_drafts=num_drafts, drafter=drafter, cache=cache, chunk_size=chunk_size
    )
    while not loop.done:
        loop.step()
    finished = [Completion(s.index, s.choice, s.output, str(s.finish_reason)) for s in loop.sequences]
    return Generation(finished, loop.stats)


class Generator:
    """Generation in steps: the first reads all prompts and samples one token each, every other is one forward of all running rows.

    params: one for all prompts, or one each. vocab_limit: ids from there up are never drawn (the tokenizer's vocabulary size).
    num_drafts: MTP modules to draft with, 0 for plain decoding. drafter: another source of drafts in their place.
    cache: storage whose row i holds a prefix, maybe all, of the i-th prompt (repeated for each choice); its rows leave as they finish.
    ConfigError or DataError before any work for what cannot be done.
    """

    def __init__(
        self,
        model: CausalLM,
        prompts: Many[Many[int]],
        params: SamplingParams | Many[SamplingParams] = SamplingParams(),  # noqa: B008  (frozen)
        *,
        vocab_limit: int | None = None,
        num_drafts: int = 0,
        drafter: Drafter | None = None,
        cache: RowCache | None = None,
        chunk_size: int = CHUNK_SIZE,
    ) -> None:
        config = model.config
        if chunk_size < 1:
            raise ConfigError(f"chunk_size ({chunk_size}) must be at least 1")
        if vocab_limit is not None and not 1 <= vocab_limit <= config.vocab_size:
            raise ConfigError(
                f"vocab_limit ({vocab_limit}) must be from 1 to the model's vocab_size ({config.vocab_size}); "
                "a tokenizer larger than the embedding does not belong to this model"
            )
        self.model, self._vocab_limit, self._chunk_size = model, vocab_limit, chunk_size
        self._device = model.head_weight.device
        self._drafter = drafter if drafter is not None or num_drafts == 0 else MTPDrafter(model, num_drafts, vocab_limit)
        self.sequences = _sequences(config, prompts, params)
        self.running = list(self.sequences)
        self.stats = GenerationStats(prompt_tokens=sum(s.num_prompt_tokens for s in self.sequences))
        self.cache: RowCache = self._new_cache() if cache is None else cache
        if len(self.cache.lengths) != len(self.sequences):
            raise ConfigError(f"the cache has {len(self.cache.lengths)} rows for {len(self.sequences)} sequences; it needs one each")
        self._prompts_read = False

    @property
    def done(self) -> bool:
        """Whether every sequence has finished."""
        return not self.running

    @torch.no_grad()
    def step(self) -> list[Delta]:
        """One step of every running sequence; what it added, in order of (prompt, choice)."""
        if self.done:
            return []
        before = [len(s.output) for s in self.running]
        stepped, began = self.running, time.perf_counter()
        if not self._prompts_read:
            self._read_prompts()
            self._prompts_read = True
            self.stats.prefill_seconds += time.perf_counter() - began
        else:
            self._decode()
            self.stats.decode_seconds += time.perf_counter() - began
        deltas = [Delta(s.index, s.choice, s.output[n:], s.finish_reason) for s, n in zip(stepped, before, strict=True)]
        self.stats.new_tokens += sum(len(delta.token_ids) for delta in deltas)
        stay = [row for row, sequence in enumerate(stepped) if sequence.finish_reason is None]
        if len(stay) < len(stepped):
            self.running = [stepped[row] for row in stay]
            if stay:
                self.cache.keep(stay)
        return deltas

    def _new_cache(self) -> ContiguousCache:
        drafts = self._drafter.num_drafts if isinstance(self._drafter, MTPDrafter) else 0
        longest = max(s.num_prompt_tokens for s in self.sequences)
        most = max(s.max_length for s in self.sequences) + drafts
        dtype = self.model.model.norm.weight.dtype  # of activations; the embedding may be kept narrower
        layers, config = self.model.config.num_hidden_layers + drafts, self.model.config
        capacity = min(most, longest + CHUNK_SIZE)
        return ContiguousCache(config, len(self.sequences), num_layers=layers, capacity=capacity, dtype=dtype, device=self._device)

    def _read_prompts(self) -> None:
        """Chunked prefill from what is cached, and each row's first token. The last prompt position always runs: its logits are needed."""
        starts = [min(held, s.num_prompt_tokens - 1) for held, s in zip(self.cache.lengths, self.running, strict=True)]
        if self._drafter is not None:
            starts = [min(pair) for pair in zip(starts, self._drafter.start_of(self.cache), strict=True)]
        self.cache.truncate(starts)
        self.stats.cached_tokens = sum(starts)
        for sequence, start in zip(self.running, starts, strict=True):
            sequence.draft_start = start
        last: dict[int, Tensor] = {}
        while len(last) < len(self.running):
            chunks: dict[int, list[int]] = {}
            for row, sequence in enumerate(self.running):
                if row not in last:
                    chunks.setdefault(min(self._chunk_size, sequence.num_prompt_tokens - starts[row]), []).append(row)
            for width, rows in chunks.items():
                together = max(1, _PREFILL_TOKENS // width)
                for first in range(0, len(rows), together):
                    group = rows[first : first + together]
                    hidden = self._read_chunk(group, [starts[row] for row in group], width)
                    for row, states in zip(group, hidden, strict=True):
                        starts[row] += width
                        if starts[row] == self.running[row].num_prompt_tokens:
                            last[row] = states[-1]
        logits = self.model.logits(torch.stack([last[row] for row in range(len(self.running))]))
        for sequence, token in zip(self.running, self._sample(logits, self.running, 1), strict=True):
            sequence.commit(token[0])

    def _read_chunk(self, rows: list[int], starts: list[int], width: int) -> Float[Tensor, "b s m"]:
        group = [self.running[row] for row in rows]
        ids = torch.tensor([s.tokens[start : start + width] for s, start in zip(group, starts, strict=True)], device=self._device)
        positions = torch.tensor([list(range(start, start + width)) for start in starts], device=self._device)
        cache = self.cache.rows(rows)
        hidden: Tensor = self.model(ids, positions=positions, cache=cache).hidden
        if self._drafter is not None:
            self._drafter.observe(group, list(hidden), cache)
        return hidden

    def _decode(self) -> None:
        """One forward over each row's last token and its drafts; commits the target's samples up to the first wrong draft."""
        rows = self.running
        drafts: list[list[int]] = [[] for _ in rows]
        wanted = max(s.max_length - len(s.tokens) for s in rows) - 1
        if self._drafter is not None and wanted > 0:
            drafts = self._drafter.propose(rows, self.cache)[:, :wanted].tolist()
        width = 1 + len(drafts[0])
        ids = torch.tensor([[s.tokens[-1], *guess] for s, guess in zip(rows, drafts, strict=True)], device=self._device)
        positions = torch.tensor([list(range(len(s.tokens) - 1, len(s.tokens) - 1 + width)) for s in rows], device=self._device)
        hidden = self.model(ids, positions=positions, cache=self.cache).hidden
        targets = self._sample(self.model.logits(hidden).flatten(0, 1), rows, width)
        committed = []
        for sequence, guess, target in zip(rows, drafts, targets, strict=True):
            count = 0
            for token, following in zip(target, [*guess, None], strict=True):
                count += 1
                if following is not None:
                    self.stats.drafts += 1
                    self.stats.accepted += token == following
                if not sequence.commit(token) or token != following:
                    break
            committed.append(count)
        self.stats.row_steps += len(rows)
        self.stats.decoded_tokens += sum(committed)
        self.cache.truncate([len(s.tokens) - 1 for s in rows])
        if self._drafter is not None and wanted > 0:
            self._drafter.observe(rows, [states[:count] for states, count in zip(hidden, committed, strict=True)], self.cache)

    def _sample(self, logits: Float[Tensor, "n v"], rows: Many[Sequence], width: int) -> list[list[int]]:
        """The target's own tokens for the `width` places after each row's last committed token."""
        each = [s for s in rows for _ in range(width)]
        places = [len(s.tokens) + ahead for s in rows for ahead in range(width)]
        tokens = sample(logits, [s.params for s in each], [s.choice for s in each], places, self._vocab_limit).tolist()
        return [tokens[first : first + width] for first in range(0, len(tokens), width)]


def _sequences(config: ModelConfig, prompts: Many[Many[int]], params: SamplingParams | Many[SamplingParams]) -> list[Sequence]:
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
    if not prompts:
        raise DataError("there is no prompt to continue; give at least one")
    if len(each) != len(prompts):
        raise ConfigError(f"{len(each)} sampling parameters for {len(prompts)} prompts; give one for all, or one each")
    out = []
    for index, (prompt, wanted) in enumerate(zip(prompts, each, strict=True)):
        _check_prompt(config, index, prompt)
        room = config.max_position_embeddings - len(prompt)
        tokens = room if wanted.max_tokens is None else wanted.max_tokens
        if tokens > room or room < 1:
            raise DataError(
                f"prompt {index} ({len(prompt)} tokens) and max_tokens ({wanted.max_tokens}) exceed max_position_embeddings "
                f"({config.max_position_embeddings}); " + (f"use max_tokens of at most {room}" if room > 0 else "shorten the prompt")
            )
        stops = frozenset(wanted.stop_token_ids) | (frozenset() if wanted.ignore_eos else frozenset([config.eos_token_id]))
        for choice in range(wanted.n):
            out.append(Sequence(index, choice, list(prompt), len(prompt), len(prompt) + tokens, wanted, stops))
    return out


def _check_prompt(config: ModelConfig, index: int, prompt: Many[int]) -> None:
    if len(prompt) == 0:
        raise DataError(f"prompt {index} is empty; begin with the end-of-document or begin-of-sentence token")
    for place, token in enumerate(prompt):
        if type(token) is not int or not 0 <= token < config.vocab_size:
            raise DataError(
                f"prompt {index} has {token!r} at place {place}; token ids are whole numbers from 0 to vocab_size - 1 ({config.vocab_size - 1})"
            )
