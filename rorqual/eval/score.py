"""Log-probabilities of given tokens: what requests share is computed once.

Requests of a batch form a tree in which every common beginning stands once (eval/ragged.py), without a cache and without padding. Where a
long beginning (few-shot examples) is most of the work, it runs once for all batches, also over several calls, on the engine's runner and
paged cache; contexts and then their choices follow, each over the blocks before it, with a copy of the last, unfilled one, padded at the
end, where nothing looks. Logits are taken at scored places alone. The engine must be idle. Report section 4.4.1; field case F40.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rorqual.errors import ConfigError, DataError, DeviceError
from rorqual.eval.ragged import Ragged, common
from rorqual.inference.engine import Engine
from rorqual.inference.params import SamplingParams
from rorqual.inference.runner import Runner
from rorqual.inference.scheduler import Sequence as Row
from rorqual.inference.scheduler import Work

_LOGIT_BYTES = 64 * 2**20
_KEYS = 2**17  # cached positions that the tails of one forward read, over all rows
_ROUND = 4  # widths of tails are multiples of this
_PARAMS = SamplingParams(max_tokens=1)


@dataclass(frozen=True)
class TokenScores:
    """Natural log-probability of each scored token, of the model's own distribution, and whether each was the most likely one."""

    logprobs: list[float]
    greedy: bool


@dataclass
class Computed:
    """Tokens that went through the model: those that were asked for, and padding beside them; `scored` had their logits taken."""

    tokens: int = 0
    padding: int = 0
    scored: int = 0


@dataclass(eq=False)
class _Group:
    """Requests with equal tokens before the scored ones. `body` runs first: the context, or all but the last token of a single request.

    `wanted` holds each member's number and scored tokens; `width` counts body and tails.
    """

    body: list[int]
    start: int
    wanted: list[tuple[int, list[int]]] = field(default_factory=list)
    width: int = 0


@dataclass(eq=False)
class _Tail:
    """One choice after its context, which `owner` holds: tokens[start:] are scored, the first of them from the state `first`."""

    owner: Row
    number: int
    tokens: list[int]
    start: int
    first: Tensor


_End = tuple[int, list[int], list[Tensor]]
"""Of one request: its number, the tokens to be scored, and the states that predict them in parts."""


class Scorer:
    """Scores over one engine. `budget`: tokens of one forward, padding included. `computed` counts since the start.

    A common beginning stays in the cache for the next call, until `forget`.
    """

    def __init__(self, engine: Engine, budget: int = 2048) -> None:
        self._engine, self._budget, self.computed = engine, budget, Computed()
        self._prefix: Row | None = None
        self._size = engine.pool.block_size
        self._runner = Runner(engine.model, engine.storage, compiled=False)  # batches are large here: GEMMs win over the decode step
        config = engine.model.config
        self._limit = config.vocab_size if engine.tokenizer is None else min(engine.tokenizer.vocab_size, config.vocab_size)

    @torch.no_grad()
    def score(self, requests: Sequence[tuple[Sequence[int], int]]) -> list[TokenScores]:
        """Of each (tokens, start): tokens[start:], each given all before it; start is at least 1.

        DataError for ids outside the vocabulary or more tokens than the context holds; ConfigError while the engine has work.
        """
        if self._engine.has_work:
            raise ConfigError("the engine has unfinished requests; finish or abort them before scoring")
        for tokens, start in requests:
            self._check(tokens, start)
        found: list[TokenScores | None] = [None] * len(requests)
        for family, shared in self._families(requests):
            packed = [] if shared else [group for group in family if group.width <= self._budget]
            for some in self._packs(packed):
                self._run_packed(some, found)
            if len(packed) < len(family):
                self._run_family([group for group in family if shared or group.width > self._budget], shared, found)
        return [one for one in found if one is not None]

    def forget(self) -> None:
        """Gives up the beginning that is kept for the next call, as a change of the weights requires."""
        if self._prefix is not None:
            self._engine.pool.release(self._prefix.blocks)
            self._prefix = None

    def _check(self, tokens: Sequence[int], start: int) -> None:
        config = self._engine.model.config
        if not 1 <= start < len(tokens):
            raise DataError(f"scoring starts at token {start} of {len(tokens)}; it needs at least one token before it and one after")
        if len(tokens) - 1 > config.max_position_embeddings:
            raise DataError(f"{len(tokens) - 1} tokens are over max_position_embeddings ({config.max_position_embeddings}); cut them first")
        outside = next((token for token in tokens if not 0 <= token < self._limit), None)
        if outside is not None:
            raise DataError(f"token id {outside} is outside the vocabulary (0 to {self._limit - 1}); the tokenizer is another model's")

    # ------------------------------------------------------------------ order and batches

    def _families(self, requests: Sequence[tuple[Sequence[int], int]]) -> list[tuple[list[_Group], int]]:
        """Groups that begin alike together, shorter bodies first, and the tokens they share."""
        groups: dict[tuple[int, ...], _Group] = {}
        for number, (tokens, start) in enumerate(requests):
            key = tuple(tokens[:start])
            groups.setdefault(key, _Group(list(key), start)).wanted.append((number, list(tokens[start:])))
        for group in groups.values():
            if len(group.wanted) == 1:
                group.body += group.wanted[0][1][:-1]
            group.width = len(group.body) + (sum(len(wanted) - 1 for _, wanted in group.wanted) if len(group.wanted) > 1 else 0)
        return self._split(list(groups.values()))

    def _split(self, groups: list[_Group]) -> list[tuple[list[_Group], int]]:
        """Families with the length of the beginning that each runs once: a part gets its own where that saves more than it repeats.

        Where it saves less than half of the tokens there is none: short batches and the cache cost more than that.
        """
        out: list[tuple[list[_Group], int]] = []
        loose: list[_Group] = []
        stack = [groups]
        while stack:
            rest, shared = [], self._shared(stack[-1])
            parts: dict[tuple[int, ...], list[_Group]] = {}
            for group in stack.pop():
                parts.setdefault(tuple(group.body[shared : shared + self._size]), []).append(group)
            for part in parts.values():
                if len(parts) > 1 and (len(part) - 1) * (self._shared(part) - shared) > shared:
                    stack.append(part)
                else:
                    rest += part
            if 2 * shared * (len(rest) - 1) > sum(group.width for group in rest):
                out.append((sorted(rest, key=lambda group: len(group.body)), shared))
            else:
                loose += rest
        return [*out[::-1], (sorted(loose, key=lambda group: len(group.body)), 0)]

    def _shared(self, family: list[_Group]) -> int:
        """Whole blocks that every body begins with, all before the first scored place."""
        first, last = min(g.body for g in family), max(g.body for g in family)
        most = min(min(g.start for g in family) - 1, len(first), len(last))
        same = next((place for place in range(most) if first[place] != last[place]), most)
        return same // self._size * self._size if len(family) > 1 else 0

    def _packs(self, groups: list[_Group]) -> Iterator[list[_Group]]:
        """Neighbours in the order of their tokens, so that what they begin with stands once, up to `budget` tokens."""
        batch: list[_Group] = []
        size = 0
        for group in sorted(groups, key=lambda group: group.body):
            width = group.width - (common(batch[-1].body, group.body) if batch else 0)
            if batch and size + width > self._budget:
                yield batch
                batch, size, width = [], 0, group.width
            batch.append(group)
            size += width
        if batch:
            yield batch

    def _batches(self, family: list[_Group], shared: int) -> Iterator[tuple[list[_Group], int]]:
        """Groups of similar width after the shared beginning, and the blocks that they and their tails need."""
        batch: list[_Group] = []
        blocks = 0
        for group in family:
            width = len(group.body) - shared
            need = -(-width // self._size) + 1
            if len(group.wanted) > 1:
                need += sum((len(wanted) + 2 * self._size) // self._size for _, wanted in group.wanted)
            slack = batch and width - (len(batch[0].body) - shared) > max(8, width // 4)
            if batch and (slack or (len(batch) + 1) * width > self._budget or blocks + need > self._engine.pool.num_free):
                yield batch, blocks
                batch, blocks = [], 0
            batch.append(group)
            blocks += need
        if batch:
            yield batch, blocks

    # ------------------------------------------------------------------ without a cache: each group is one row

    def _run_packed(self, batch: list[_Group], found: list[TokenScores | None]) -> None:
        """Every request is a sequence, what sequences share stands once (eval/ragged.py), and each scored place is computed once."""
        asked = [(number, group.start, group.body[: group.start], wanted) for group in batch for number, wanted in group.wanted]
        ragged = Ragged.of([[*body, *wanted[:-1]] for _, _, body, wanted in asked])
        rows: dict[int, int] = {}
        scored: list[list[int]] = []
        ends: list[tuple[int, list[int], list[int]]] = []
        for row, (number, start, _, wanted) in enumerate(asked):
            places = ragged.places(row, start - 1, start - 1 + len(wanted))
            scored.append([place for place in places if place not in rows])
            for place in scored[-1]:
                rows[place] = len(rows)
            ends.append((number, wanted, [rows[place] for place in places]))
        self.computed.tokens += len(ragged.ids)
        self._read(ragged.states(self._engine.model, scored), ends, found)

    # ------------------------------------------------------------------ over the paged cache: a common beginning, then bodies, then tails

    def _run_family(self, family: list[_Group], shared: int, found: list[TokenScores | None]) -> None:
        prefix = self._run_prefix(family[0].body[:shared])
        held: list[int] = []
        tails: list[_Tail] = []
        try:
            for batch, blocks in self._batches(family, shared):
                if tails and blocks > self._engine.pool.num_free:
                    self._run_tails(tails, found, held)
                self._run_bodies(batch, prefix, shared, found, held, tails)
                waiting = sum(len(tail.tokens) - tail.start for tail in tails)
                if waiting > self._budget or 2 * self._engine.pool.num_free < self._engine.pool.num_blocks or not tails:
                    self._run_tails(tails, found, held)
            self._run_tails(tails, found, held)
        finally:
            self._engine.pool.release(held)

    def _run_bodies(
        self, batch: list[_Group], prefix: Row | None, shared: int, found: list[TokenScores | None], held: list[int], tails: list[_Tail]
    ) -> None:
        """The bodies of a batch; what is left of several choices joins `tails`, whose blocks `held` keeps."""
        width = max(len(group.body) for group in batch)
        rows = [self._row(group.body, width, shared, [] if prefix is None else prefix.blocks, held) for group in batch]
        ends: list[_End] = []
        for group, row, own in zip(batch, rows, self._forward(rows, [len(group.body) for group in batch]), strict=True):
            if len(group.wanted) == 1:
                number, wanted = group.wanted[0]
                ends.append((number, wanted, [own[group.start - 1 - shared : len(group.body) - shared]]))
                continue
            first = own[len(group.body) - 1 - shared].unsqueeze(0)
            for number, wanted in group.wanted:
                if len(wanted) == 1:
                    ends.append((number, wanted, [first]))
                else:
                    tails.append(_Tail(row, number, [*group.body, *wanted], group.start, first))
        self._read_parts(ends, found)

    def _run_tails(self, tails: list[_Tail], found: list[TokenScores | None], held: list[int]) -> None:
        """Scores what waits, widths rounded up so that many run together, and gives all blocks back."""
        tails.sort(key=lambda tail: (-(-(len(tail.tokens) - 1 - tail.start) // _ROUND), tail.start))
        while tails:
            width, count = -(-(len(tails[0].tokens) - 1 - tails[0].start) // _ROUND) * _ROUND, 0
            while count < len(tails) and len(tails[count].tokens) - 1 - tails[count].start <= width:
                if count and (count + 1) * max(width * 8, tails[count].start + width) > _KEYS:
                    break
                count += 1
            some, own = tails[:count], list[int]()
            del tails[:count]
            rows = [self._tail(tail.owner, tail.tokens[:-1], tail.start, width, own) for tail in some]
            try:
                states = self._forward(rows, [len(tail.tokens) - 1 for tail in some])
            finally:
                self._engine.pool.release(own)
            parts = [[tail.first, one[: len(tail.tokens) - 1 - tail.start]] for tail, one in zip(some, states, strict=True)]
            self._read_parts([(t.number, t.tokens[t.start :], part) for t, part in zip(some, parts, strict=True)], found)
        self._engine.pool.release(held)
        held.clear()

    def _forward(self, rows: list[Row], lengths: list[int]) -> list[Tensor]:
        """States of the rows' tokens from `computed` on, at most `budget` positions of a row at a time."""
        parts: list[list[Tensor]] = [[] for _ in rows]
        starts = [row.computed for row in rows]
        while any(row.computed < len(row.tokens) for row in rows):
            work = [Work(row, min(len(row.tokens), row.computed + self._budget)) for row in rows if row.computed < len(row.tokens)]
            by_row = {one.sequence: states for one, states in zip(work, self._runner.trunk(work), strict=True)}
            for part, row in zip(parts, rows, strict=True):
                if row in by_row:
                    part.append(by_row[row])
            for one in work:
                one.sequence.computed = one.end
        for row, length, start in zip(rows, lengths, starts, strict=True):
            self.computed.tokens += length - start
            self.computed.padding += len(row.tokens) - length
        return [part[0] if len(part) == 1 else torch.cat(part) for part in parts]

    def _read_parts(self, ends: list[_End], found: list[TokenScores | None]) -> None:
        """The same for states that come in parts."""
        if ends:
            hidden = torch.cat([part for _, _, parts in ends for part in parts])
            sizes = torch.tensor([0, *(len(tokens) for _, tokens, _ in ends)]).cumsum(0).tolist()
            self._read(hidden, [(end[0], end[1], list(range(at, at + len(end[1])))) for end, at in zip(ends, sizes, strict=False)], found)

    def _read(self, hidden: Tensor, ends: list[tuple[int, list[int], list[int]]], found: list[TokenScores | None]) -> None:
        """Logits of the states, a slice at a time; each end has a request's number, its scored tokens and the rows of their states."""
        wanted = torch.tensor([token for _, tokens, _ in ends for token in tokens], device=hidden.device)
        rows = torch.tensor([row for _, _, some in ends for row in some], device=hidden.device)
        step = max(1, _LOGIT_BYTES // (4 * self._engine.model.config.vocab_size))
        values = torch.empty(len(rows), dtype=torch.float64)
        best = torch.empty(len(rows), dtype=torch.bool)
        for start in range(0, len(hidden), step):
            logits = self._runner.logits(hidden[start : start + step])[:, : self._limit].float()
            mine = ((rows >= start) & (rows < start + step)).nonzero()[:, 0]
            at, tokens = rows[mine] - start, wanted[mine]
            values[mine.cpu()] = (logits[at, tokens] - logits.logsumexp(dim=-1)[at]).double().cpu()
            best[mine.cpu()] = (logits.argmax(dim=-1)[at] == tokens).cpu()
        self.computed.scored += len(rows)
        logprobs, greedy, done = values.tolist(), best.tolist(), 0
        for number, asked, _ in ends:
            found[number] = TokenScores(logprobs[done : done + len(asked)], all(greedy[done : done + len(asked)]))
            done += len(asked)

    # ------------------------------------------------------------------ blocks

    def _row(self, tokens: list[int], width: int, computed: int, blocks: list[int], held: list[int]) -> Row:
        """A row over `blocks`, which belong to somebody else, and new ones, which `held` takes."""
        row = Row("score", 0, 0, tokens + [0] * (width - len(tokens)), len(tokens), width, _PARAMS, frozenset())
        row.computed, row.blocks = computed, list(blocks)
        self._grow(row, held)
        return row

    def _tail(self, owner: Row, tokens: list[int], computed: int, width: int, held: list[int]) -> Row:
        """A row over the owner's full blocks and a copy of the one that the context fills in part."""
        full = computed // self._size
        row = self._row(tokens, computed + width, computed, owner.blocks[:full], held)
        if computed % self._size:
            values = self._engine.storage.values
            values[:, row.blocks[full]] = values[:, owner.blocks[full]]
        return row

    def _grow(self, row: Row, held: list[int]) -> None:
        while len(row.blocks) * self._size < len(row.tokens):
            block = self._engine.pool.allocate()
            if block is None:
                raise DeviceError(f"the cache of {self._engine.pool.num_blocks} blocks is too small for a batch; give it more memory")
            row.blocks.append(block)
            held.append(block)

    def _run_prefix(self, tokens: list[int]) -> Row | None:
        if self._prefix is not None and self._prefix.tokens == tokens:
            return self._prefix
        self.forget()
        if not tokens:
            return None
        self._prefix = self._row(tokens, len(tokens), 0, [], [])
        self._forward([self._prefix], [len(tokens)])
        return self._prefix
