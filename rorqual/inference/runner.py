"""Runs a step's work through the model over the paged cache: the trunk, the MTP modules, the head.

Decode rows, drafts and short ends of prompts go through the compiled step (kernels.decode) where it takes the model, on a GPU through
inference.gpu, else through the step without a compiler (inference.eager): all of them in one flat batch, each row's result independent of the
others. Longer chunks, on a GPU none, and models that no step takes run through the model's own modules, pieces of equal width together, so nothing is padded; attention chooses its form by
the number of query positions (model.mla): expanded for chunks, absorbed for a few rows. Shape letters: n rows, s positions, m model width,
k drafts.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from rorqual.errors import ConfigError
from rorqual.inference import eager, gpu
from rorqual.inference.paged import PagedStorage, PagedView
from rorqual.inference.sampler import key, sample
from rorqual.inference.scheduler import Sequence, Work
from rorqual.kernels import decode
from rorqual.kernels.decode import Draws, Rows, whole
from rorqual.model.transformer import CausalLM

COMPILED_WIDTH = 64
"""Positions of one sequence up to which a piece of work is given to the compiled step; longer ones are GEMMs' business."""
FLAT_ROWS = 64
"""Rows of one call of the step: its scratch grows with them."""
DRAFT_WEIGHTS = "int8"
"""Type of the MTP modules' matrices and of the head's copy for drafts: a quarter of the bytes, and a wrong draft changes no answer."""


@dataclass(slots=True)
class Forward:
    """What a step's work gave: states [s m] of each piece; logits of the last token and the drafts of every piece that reaches its sequence's
    end, in their order, and the tokens drawn from them, where the same call made them (else None, to be made from the states).
    `ahead`: for each piece the draft behind the tokens that it keeps, where the same call ran the MTP module too, and gave no states."""

    hidden: list[Tensor]
    logits: Tensor | None = None
    tokens: list[int] | None = None
    ahead: list[int] | None = None


class Runner:
    """`num_drafts` guesses per sequence come from the model's MTP modules; beyond their number the last one runs on its own states.

    `compiled` False keeps to PyTorch; `why_not` says why the compiled step is not used, None where it is; `path` says in words
    what runs. `weights` is the type that the compiled step keeps matrices in (default: the model's own); with another one than FP32 it runs chunks too, so that every state comes from
    the same weights in FP32 arithmetic. ConfigError where the step cannot run and the type is not the model's own.
    """

    def __init__(
        self, model: CausalLM, storage: PagedStorage, num_drafts: int = 0, vocab_limit: int | None = None, *, compiled: bool = True,
        weights: str | None = None,
    ) -> None:  # fmt: skip
        self.model, self.storage, self._vocab_limit = model, storage, vocab_limit
        self.modules = min(num_drafts, model.config.num_nextn_predict_layers)
        self._one_draft = num_drafts == 1
        self._device = model.head_weight.device
        self._step: decode.DecodeStep | eager.EagerStep | gpu.GpuStep | None = None
        self._compiled: decode.DecodeStep | None = None
        self._drawable = model.config.vocab_size if vocab_limit is None else min(vocab_limit, model.config.vocab_size)
        own = "bf16" if model.model.norm.weight.dtype == torch.bfloat16 else "fp32"
        tensors, rope = {name: value.detach() for name, value in model.state_dict().items()}, model.rope
        self.why_not = decode.usable(model.config, tensors) if compiled else "switched off"
        if self.why_not is None and storage.values.dtype != torch.float32:
            self.why_not = f"the cache is {storage.values.dtype}"
        if self.why_not is not None and weights not in (None, own):
            raise ConfigError(f"weights ({weights!r}) need the compiled step, which does not run: {self.why_not}; use {own!r}")
        self._width: float = COMPILED_WIDTH if (weights or own) == "fp32" else math.inf
        on_gpu: tuple[gpu.GpuStep | None, str] = (None, "switched off")
        if self.why_not is not None and compiled:
            on_gpu = gpu.opened(model.config, tensors, rope.inv_freq, rope.amplitude, rope.softmax_scale, storage)
        reason = self.why_not if self._device.type == "cpu" else on_gpu[1]
        self.path = "compiled" if self.why_not is None else f"PyTorch ({reason})"
        if self.why_not is None:
            small = DRAFT_WEIGHTS if num_drafts else None
            self._step = self._compiled = decode.DecodeStep(
                model.config, tensors, rope.inv_freq, rope.amplitude, rope.softmax_scale, weights or own, small
            )
        elif on_gpu[0] is not None:
            self._width, (self._step, self.path) = math.inf, on_gpu
        elif storage.values.dtype == torch.float32 and eager.usable(model.config, tensors) is None:
            self._step, self.path = (
                eager.EagerStep(model.config, tensors, rope.inv_freq, rope.amplitude, rope.softmax_scale),
                f"NumPy ({reason})",
            )

    def refresh(self) -> None:
        """Follows a change of the model's weights."""
        if self._compiled is not None:
            self._compiled.refresh()

    @torch.no_grad()
    def weight_error(self) -> tuple[float, float] | None:
        """(relative error of the matrices, of the logits on 16 fixed tokens) that a lossy type makes against the model itself; None for others."""
        step = self._compiled
        if step is None or not step.lossy:
            return None
        ids = torch.linspace(0, self.model.config.vocab_size - 1, 16).long()
        want = self.model.logits(self.model(ids.unsqueeze(0)).hidden[0])
        values, positions = self.storage.values, torch.arange(16)
        storage = torch.zeros(values.shape[0], 1, 16, values.shape[3])
        got = step.logits(step.trunk(ids, positions, torch.zeros(16, 1, dtype=torch.int64), storage))
        return step.weight_error(), float((got - want).norm() / want.norm().clamp_min(1e-30))

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """The head on rows of states."""
        if self._step is not None and (len(hidden) <= FLAT_ROWS or self._width > COMPILED_WIDTH):
            return self._step.logits(hidden)
        return self.model.logits(hidden)

    def forward(self, work: list[Work], ahead: bool = False) -> Forward:
        """`trunk`, and where the compiled step runs it all in one call, the logits, and the tokens if every draw is by temperature alone.

        With `ahead`, and where it can, the next step's drafts too; then no states come back.
        """
        step = self._compiled
        if step is None or sum(one.end + len(one.drafts) - one.sequence.computed for one in work) > FLAT_ROWS:
            return Forward(self.trunk(work))
        if ahead and self._one_draft:
            advanced = self._advance(step, work)
            if advanced is not None:
                return advanced
        rows, draws, plain, counts = Rows.none(), Draws.none(self._drawable), True, []
        for one in work:
            s, first = one.sequence, len(rows.ids)
            count = one.end - s.computed + len(one.drafts)
            rows.add(s.tokens[s.computed : one.end] + one.drafts, s.computed, s.blocks)
            counts.append(count)
            if one.end == len(s.tokens):
                draws.rows.extend(range(first + count - 1 - len(one.drafts), first + count))
                plain = plain and s.plain
                if plain:
                    self._add_draws(draws, s, one.end, 1 + len(one.drafts))
        if not plain:
            draws.keys = None
        routes = self._routes(len(rows.ids))
        made = step.forward(rows, self.storage.values, draws if len(draws.rows) else None, routes=routes)
        if routes is not None:
            self._keep(routes, work, counts, rows.positions.tolist())
        return Forward([made.states] if len(work) == 1 else list(made.states.split(counts)), made.logits, made.tokens)

    def _advance(self, step: decode.DecodeStep, work: list[Work]) -> Forward | None:
        """`forward` and the next drafts; None where a piece is no decoding sequence drawn by temperature alone, the module lies behind, or
        nobody has room for another draft."""
        lines: list[int] = []
        tables: list[int] = []
        temperatures, longest, room = [], 0, False
        for one in work:
            s, drafts = one.sequence, one.drafts
            at, ahead = s.computed, one.end + len(drafts)
            if not s.plain or s.draft_start != at or s.draft_rows or one.end != at + 1 or one.end != len(s.tokens):
                return None
            lines += (at, ahead - at, len(tables), s.tokens[at], drafts[0] if drafts else 0)
            if s.params.greedy:
                lines += (0, 0, 0)
                temperatures.append(0.0)
            else:
                lines += [key(s.params.seed, s.choice, place, "sample") for place in range(one.end, one.end + 3)]
                temperatures.append(s.params.temperature)
            tables += s.blocks
            longest, room = max(longest, ahead), room or one.end + 2 < s.max_length
        if not room:
            return None
        routes = self._routes(sum(lines[1::8]))
        results, logits = step.advance(lines, tables, temperatures, longest, self._drawable, self.storage.values, routes)
        if routes is not None:
            counts = lines[1::8]
            places = [place for at, count in zip(lines[::8], counts, strict=True) for place in range(at, at + count)]
            self._keep(routes, work, counts, places)
        return Forward([], logits, results[: -2 * len(work)], results[-len(work) :])

    def _routes(self, rows: int) -> Tensor | None:
        """Room for the experts of so many rows, where they are recorded."""
        kept = self.storage.routes
        return None if kept is None or not kept.shape[2] else torch.empty(kept.shape[2], rows, kept.shape[3], dtype=torch.int64)

    def _keep(self, routes: Tensor, work: list[Work], counts: list[int], places: list[int]) -> None:
        tables = self._tables([one.sequence for one in work], counts)
        self.storage.keep(tables, self._tensor(places).unsqueeze(1), routes.transpose(0, 1).unsqueeze(1))

    @staticmethod
    def _add_draws(draws: Draws, s: Sequence, place: int, count: int) -> None:
        """Draws of a sequence's tokens from `place` on."""
        assert draws.keys is not None and draws.temperatures is not None
        if s.params.greedy:
            draws.keys.extend([0] * count)
            draws.temperatures.extend([0.0] * count)
        else:
            draws.keys.extend([key(s.params.seed, s.choice, place + ahead, "sample") for ahead in range(count)])
            draws.temperatures.extend([s.params.temperature] * count)

    @torch.no_grad()
    def trunk(self, work: list[Work]) -> list[Tensor]:
        """States [s m] after the final norm for each piece of work, in its order; writes the trunk's entries."""
        out: list[Tensor] = [torch.empty(0)] * len(work)
        widths = [one.end + len(one.drafts) - one.sequence.computed for one in work]
        short = [number for number, width in enumerate(widths) if self._step is not None and width <= self._width]
        if short:
            for number, states in zip(short, self._flat_trunk([work[number] for number in short]), strict=True):
                out[number] = states
        rest = [number for number in range(len(work)) if number not in set(short)]
        for group_of_rest in _by_width(widths[number] for number in rest):
            numbers = [rest[place] for place in group_of_rest]
            group = [work[number] for number in numbers]
            ids = [[*one.sequence.tokens[one.sequence.computed : one.end], *one.drafts] for one in group]
            positions = self._positions([one.sequence.computed for one in group], len(ids[0]))
            view = self._view([one.sequence for one in group], positions)
            ran = self.model(self._tensor(ids), positions=positions, cache=view)
            if self.storage.routes is not None and ran.routings:
                chosen = torch.stack([routing.indices for routing in ran.routings], dim=1)
                self.storage.keep(
                    self._tables([one.sequence for one in group], [1] * len(group)),
                    positions,
                    chosen.view(*positions.shape, *chosen.shape[1:]),
                )
            for number, states in zip(numbers, ran.hidden, strict=True):
                out[number] = states
        return out

    def _flat_trunk(self, work: list[Work]) -> list[Tensor]:
        assert self._step is not None
        ids: list[int] = []
        positions: list[int] = []
        counts = []
        for one in work:
            rows = [*one.sequence.tokens[one.sequence.computed : one.end], *one.drafts]
            ids += rows
            positions += range(one.sequence.computed, one.sequence.computed + len(rows))
            counts.append(len(rows))
        tables = self._tables([one.sequence for one in work], counts)
        kept, places = self.storage.routes, self._tensor(positions)
        shape = None if kept is None or not kept.shape[2] else (kept.shape[2], len(ids), kept.shape[3])
        routes = None if shape is None else torch.empty(shape, dtype=torch.int64, device=self._device)
        every, step, made = self._tensor(ids), self._step, []
        for at in range(0, len(ids), FLAT_ROWS):
            some = slice(at, at + FLAT_ROWS)
            into = routes if routes is None or len(ids) <= FLAT_ROWS else torch.empty_like(routes[:, some])
            made.append(step.trunk(every[some], places[some], tables[some], self.storage.values, into))
            if routes is not None and into is not None and into is not routes:
                routes[:, some] = into
        hidden = made[0] if len(made) == 1 else torch.cat(made)
        if routes is not None:
            self.storage.keep(tables, places.unsqueeze(1), routes.transpose(0, 1).unsqueeze(1))
        return list(hidden.split(counts))

    def _mtp(self, index: int, group: list[Sequence], hidden: Tensor, ids: list[list[int]], positions: Tensor) -> Tensor:
        """One MTP module on states [b s m]."""
        if self._step is None or hidden.shape[1] > self._width:
            return self.model.mtp_hidden(index, hidden, self._tensor(ids), positions, self._view(group, positions))
        width = hidden.shape[1]
        tables = self._tables(group, [width] * len(group))
        flat = self._step.mtp(index, hidden.flatten(0, 1), self._tensor(ids).flatten(), positions.flatten(), tables, self.storage.values)
        return flat.view(hidden.shape)

    def _tables(self, group: list[Sequence], counts: list[int]) -> Tensor:
        """Block table of every row."""
        longest = max(len(s.blocks) for s in group)
        tables = self._tensor([s.blocks + s.blocks[-1:] * (longest - len(s.blocks)) for s in group])
        if max(counts) == 1:
            return tables
        return tables.index_select(0, self._tensor([number for number, count in enumerate(counts) for _ in range(count)]))

    def observe(self, sequence: Sequence, hidden: Tensor) -> None:
        """Takes the states of the next positions of one sequence for the drafter."""
        rows = hidden.shape[0] if self.modules else 0
        if rows:
            sequence.draft_hidden.append(hidden)
            sequence.draft_rows += rows

    def catch_up(self, sequences: list[Sequence]) -> None:
        """Runs the MTP modules over the positions whose following tokens are known; the chunks of a prompt."""
        ready = [(s, min(_seen(s) - 1, len(s.tokens) - self.modules) - s.draft_start) for s in sequences]  # the newest state is `propose`'s
        self._draft([s for s, width in ready if width > 0], [width for _, width in ready if width > 0], 0)

    def propose(self, sequences: list[Sequence], num_drafts: int) -> list[list[int]]:
        """Guesses for the tokens after each sequence's last, made now where the last step did not make them."""
        late = [s for s in sequences if s.ahead < 0]
        if not late:
            return [[s.ahead] for s in sequences]
        drafts = iter(self._draft(late, [s.draft_rows for s in late], num_drafts))
        return [[s.ahead] if s.ahead >= 0 else next(drafts) for s in sequences]

    def _draft(self, sequences: list[Sequence], widths: list[int], num_drafts: int) -> list[list[int]]:
        """The modules over the next `widths` positions of each sequence."""
        if not sequences:
            return []
        if self._compiled is not None and (self.modules == 1 or max(widths) <= self._width):
            return self._flat_modules(self._compiled, sequences, widths, num_drafts)
        out: list[list[int]] = [[] for _ in sequences]
        for numbers in _by_width(widths):
            for number, drafts in zip(numbers, self._modules([sequences[n] for n in numbers], widths[numbers[0]], num_drafts), strict=True):
                out[number] = drafts
        return out

    def _flat_modules(self, step: decode.DecodeStep, group: list[Sequence], widths: list[int], num_drafts: int) -> list[list[int]]:
        """All sequences' rows in one call a module; of the last one's, only each sequence's newest row needs a state, and for drafts alone."""
        parts = [_pending(s) if s.draft_rows == width else _pending(s)[:width] for s, width in zip(group, widths, strict=True)]
        hidden = parts[0] if len(parts) == 1 else torch.cat(parts)
        more = 1 if num_drafts else self.modules
        known = [s.tokens[s.draft_start + 1 : s.draft_start + width + more] for s, width in zip(group, widths, strict=True)]
        plain = not any(s.params.filters for s in group)
        for module in range(max(num_drafts, self.modules)):
            ahead = max(0, module - self.modules + 1)  # beyond the modules: the last one's own state, one place on
            rows, draws, last = Rows.none(), Draws.none(self._drawable), array("q")
            for s, width, tokens in zip(group, widths, known, strict=True):
                if ahead:
                    rows.add(tokens[-1:], s.draft_start + width - 1 + ahead, s.blocks)
                else:
                    rows.add(tokens[module : module + width], s.draft_start, s.blocks)
                last.append(len(rows.ids) - 1)
                if num_drafts and plain:
                    self._add_draws(draws, s, s.draft_start + width + 1 + module, 1)
            final, several = module >= self.modules - 1, len(rows.ids) > len(last)
            select = None if not final else array("q") if not num_drafts else last if several else None
            if num_drafts:
                draws.rows = last if select is None else whole(range(len(last)))
                draws.keys = draws.keys if plain else None
            index = min(module, self.modules - 1)
            made = step.forward(rows, self.storage.values, draws if num_drafts else None, module=index, hidden=hidden, select=select)
            hidden = made.states
            if num_drafts:
                drawn = made.tokens
                if drawn is None:
                    assert made.logits is not None
                    places = [s.draft_start + width + 1 + module for s, width in zip(group, widths, strict=True)]
                    drawn = sample(made.logits, [s.params for s in group], [s.choice for s in group], places, self._vocab_limit).tolist()
                for tokens, token in zip(known, drawn, strict=True):
                    tokens.append(max(token, 0))  # NaN: the target's own logits will say so
        self._settle(group, widths, num_drafts)
        return [tokens[len(tokens) - num_drafts :] for tokens in known]

    def _settle(self, group: list[Sequence], widths: list[int], num_drafts: int) -> None:
        """Notes what of the modules' entries is final: the last modules - 1 positions of drafts were run with guesses."""
        for s, width in zip(group, widths, strict=True):
            done = max(0, width - self.modules + 1) if num_drafts else width
            s.draft_hidden = [] if done == s.draft_rows else [_pending(s)[done:]]
            s.draft_rows -= done
            s.draft_start += done

    @torch.no_grad()
    def _modules(self, group: list[Sequence], width: int, num_drafts: int) -> list[list[int]]:
        starts = [s.draft_start for s in group]
        hidden = torch.stack([_pending(s)[:width] for s in group])
        known = [s.tokens[s.draft_start + 1 : s.draft_start + width + (self.modules if not num_drafts else 1)] for s in group]
        positions = self._positions(starts, width)
        guesses: list[list[int]] = [[] for _ in group]
        for module in range(max(num_drafts, self.modules)):
            index = min(module, self.modules - 1)
            if module >= self.modules:  # its own state, one place on
                hidden, positions = hidden[:, -1:], positions[:, -1:] + 1
                ids = [tokens[-1:] for tokens in known]
            else:
                ids = [tokens[module : module + width] for tokens in known]
            hidden = self._mtp(index, group, hidden, ids, positions)
            if num_drafts:
                places = [start + width + 1 + module for start in starts]
                logits = self.logits(hidden[:, -1])
                drawn = sample(logits, [s.params for s in group], [s.choice for s in group], places, self._vocab_limit).tolist()
                for tokens, guess, token in zip(known, guesses, drawn, strict=True):
                    tokens.append(token)
                    guess.append(token)
        self._settle(group, [width] * len(group), num_drafts)
        return [guess[:num_drafts] for guess in guesses]

    def _view(self, group: list[Sequence], positions: Tensor) -> PagedView:
        longest = max(len(s.blocks) for s in group)
        return PagedView(self.storage, self._tensor([s.blocks + s.blocks[-1:] * (longest - len(s.blocks)) for s in group]), positions)

    def _positions(self, starts: list[int], width: int) -> Tensor:
        return self._tensor(starts).unsqueeze(1) + torch.arange(width, device=self._device)

    def _tensor(self, values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


def _by_width(widths: Iterable[int]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for number, width in enumerate(widths):
        groups.setdefault(width, []).append(number)
    return list(groups.values())


def _pending(sequence: Sequence) -> Tensor:
    """The states that wait for the drafter, in one piece."""
    if len(sequence.draft_hidden) > 1:
        sequence.draft_hidden = [torch.cat(sequence.draft_hidden)]
    return sequence.draft_hidden[0]


def _seen(sequence: Sequence) -> int:
    return sequence.draft_start + sequence.draft_rows
