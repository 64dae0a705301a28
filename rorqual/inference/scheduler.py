"""Which tokens run in the next step: one rule (computed < tokens) for prefill chunks, decoding and drafts. No model.

Decoding rows go first, then what is left of the token budget is shared between the prompts being read, so that a long prompt
neither stops the others' answers nor starves a short one. When blocks run out, the request that came last gives its own up and is
computed again later; the oldest one always goes on.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rorqual.errors import ConfigError, RorqualError
from rorqual.inference.blocks import ROOT, BlockPool
from rorqual.inference.params import SamplingParams


class QueueFullError(RorqualError):
    """More requests wait than the queue limit allows; ask again later."""


@dataclass(eq=False)
class Sequence:
    """One choice of one request. `computed` leading tokens have their entries in the cache, MTP's up to `draft_start`.

    `draft_hidden` are the trunk's states of `draft_rows` positions from `draft_start` on, in pieces; `leader` is the choice whose prompt blocks this one will share; `plain`:
    its tokens are drawn by temperature alone. `ahead` is the draft for the place after `tokens`, where the last step made one, else -1.
    """

    request_id: str
    choice: int
    arrival: int
    tokens: list[int]
    num_prompt_tokens: int
    max_length: int
    params: SamplingParams
    stop_ids: frozenset[int]
    deadline: float | None = None
    leader: Sequence | None = None
    grammar: Any = None
    stops: Any = None
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    draft_start: int = 0
    draft_hidden: list[Tensor] = field(default_factory=list)
    draft_rows: int = 0
    ahead: int = -1
    prompt_logprobs: list[Any] | None = None
    finish_reason: str | None = None
    plain: bool = False

    @property
    def output(self) -> list[int]:
        """Tokens after the prompt."""
        return self.tokens[self.num_prompt_tokens :]


@dataclass(eq=False)
class Work:
    """Tokens `sequence.computed` .. `end` - 1 of a sequence, then room for `num_drafts` guesses."""

    sequence: Sequence
    end: int
    num_drafts: int = 0
    drafts: list[int] = field(default_factory=list)


class Scheduler:
    """Waiting and running sequences over a block pool; `max_num_batched_tokens` is the token budget of a step."""

    def __init__(
        self, pool: BlockPool, *, max_num_seqs: int = 64, max_num_batched_tokens: int = 512, queue_limit: int | None = None
    ) -> None:
        if max_num_seqs < 1 or max_num_batched_tokens < 1:
            raise ConfigError(f"max_num_seqs ({max_num_seqs}) and max_num_batched_tokens ({max_num_batched_tokens}) must be at least 1")
        self.pool, self.max_num_seqs, self.budget, self.queue_limit = pool, max_num_seqs, max_num_batched_tokens, queue_limit
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = self.prefix_queries = self.prefix_hits = 0
        self._turn = 0

    def add(self, sequences: list[Sequence]) -> None:
        """Queues the choices of one request; QueueFullError over the limit."""
        if self.queue_limit is not None and len(self.waiting) + len(sequences) > self.queue_limit:
            raise QueueFullError(f"{len(self.waiting)} sequences wait, the limit is {self.queue_limit}; ask again later")
        self.waiting.extend(sequences)

    def remove(self, sequence: Sequence) -> None:
        """Drops a sequence, wherever it is, and its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._release(sequence)

    def schedule(self, num_drafts: int = 0) -> list[Work]:
        """The next step's work; every piece has its blocks. `num_drafts` guesses are wanted for each decoding sequence."""
        work: dict[Sequence, Work] = {}
        left, before = self.budget, self.preemptions
        decoding = [s for s in self.running if s.computed == len(s.tokens) - 1]
        known = set(decoding)
        first = self._turn % len(decoding) if left < len(decoding) else 0  # more rows than budget: in turns
        self._turn += left
        for sequence in decoding[first:] + decoding[:first] if first else decoding:
            if left < 1:
                break
            if before == self.preemptions or sequence in self.running:
                drafts = max(0, min(num_drafts, left - 1, sequence.max_length - len(sequence.tokens) - 1)) if num_drafts else 0
                if self._grow(sequence, len(sequence.tokens) + drafts, work):
                    work[sequence] = Work(sequence, len(sequence.tokens), drafts)
                    left -= 1 + drafts
        if self.waiting:
            self._admit(left)
        reading = [s for s in self.running if s not in known] if len(self.running) > len(decoding) or before != self.preemptions else []
        while reading and left > 0:
            shortest = min(reading, key=lambda s: len(s.tokens) - s.computed)
            reading.remove(shortest)
            share = max(1, left // (len(reading) + 1))
            end = min(len(shortest.tokens), shortest.computed + share)
            if shortest in self.running and self._grow(shortest, end, work):
                work[shortest] = Work(shortest, end)
                left -= end - shortest.computed
        if before == self.preemptions:
            return list(work.values())
        return [one for one in work.values() if one.sequence in self.running]

    def register(self, sequence: Sequence, end: int) -> None:
        """Makes the full blocks of the first `end` tokens, whose entries are final, findable."""
        size = self.pool.block_size
        for number in range(len(sequence.hashes), end // size):
            parent = sequence.hashes[-1] if sequence.hashes else ROOT
            ids = sequence.tokens[number * size : (number + 1) * size]
            sequence.hashes.append(self.pool.register(sequence.blocks[number], parent, ids))

    def _admit(self, left: int) -> None:
        skipped: list[Sequence] = []
        while self.waiting and len(self.running) < self.max_num_seqs and left > 0:
            sequence = self.waiting.popleft()
            leader = sequence.leader
            if leader is not None and leader.finish_reason is None and leader.computed < leader.num_prompt_tokens:
                skipped.append(sequence)
                continue
            if sequence.params.prompt_logprobs is None:  # else every position runs
                self._reuse(sequence)
            needed = -(-len(sequence.tokens) // self.pool.block_size) - len(sequence.blocks)
            if self.running and needed > self.pool.num_free:
                self._release(sequence)
                skipped.append(sequence)
                break
            self.running.append(sequence)
        self.waiting.extendleft(reversed(skipped))

    def _reuse(self, sequence: Sequence) -> None:
        """Takes the known blocks of its prefix; the last token always runs, because its logits are needed."""
        most = len(sequence.tokens) - 1
        sequence.blocks, _ = self.pool.match(sequence.tokens, most)
        sequence.computed = sequence.draft_start = len(sequence.blocks) * self.pool.block_size
        self.prefix_queries += most
        self.prefix_hits += sequence.computed
        self.register(sequence, sequence.computed)

    def _grow(self, sequence: Sequence, end: int, work: dict[Sequence, Work]) -> bool:
        """Blocks for the first `end` tokens, at the cost of the latest request; False if that is this one."""
        while len(sequence.blocks) * self.pool.block_size < end:
            block = self.pool.allocate()
            if block is not None:
                sequence.blocks.append(block)
                continue
            victim = max(self.running, key=lambda s: (s.arrival, s.choice))
            self.preemptions += 1
            self.running.remove(victim)
            self._release(victim)
            self.waiting.appendleft(victim)
            work.pop(victim, None)
            if victim is sequence:
                return False
        return True

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks, sequence.hashes, sequence.draft_hidden = [], [], []
        sequence.computed = sequence.draft_start = sequence.draft_rows = 0
        sequence.ahead = -1
