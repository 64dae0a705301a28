"""Runs a step's work through the model over the paged cache: the trunk, the MTP modules, the head.

Pieces of equal width run together, so nothing is padded. Attention chooses its form by the number of query positions (model.mla):
expanded for chunks, absorbed for a few rows. Shape letters: s positions, m model width, k drafts.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rorqual.inference.paged import PagedStorage, PagedView
from rorqual.inference.sampler import sample
from rorqual.inference.scheduler import Sequence, Work
from rorqual.model.transformer import CausalLM


class Runner:
    """`num_drafts` guesses per sequence come from the model's MTP modules; beyond their number the last one runs on its own states."""

    def __init__(self, model: CausalLM, storage: PagedStorage, num_drafts: int = 0, vocab_limit: int | None = None) -> None:
        self.model, self.storage, self._vocab_limit = model, storage, vocab_limit
        self.modules = min(num_drafts, model.config.num_nextn_predict_layers)
        self._device = model.head_weight.device

    def trunk(self, work: list[Work]) -> list[Tensor]:
        """States [s m] after the final norm for each piece of work, in its order; writes the trunk's entries."""
        out: list[Tensor] = [torch.empty(0)] * len(work)
        for numbers in _by_width(one.end + len(one.drafts) - one.sequence.computed for one in work):
            group = [work[number] for number in numbers]
            ids = [[*one.sequence.tokens[one.sequence.computed : one.end], *one.drafts] for one in group]
            positions = self._positions([one.sequence.computed for one in group], len(ids[0]))
            view = self._view([one.sequence for one in group], positions)
            hidden = self.model(self._tensor(ids), positions=positions, cache=view).hidden
            for number, states in zip(numbers, hidden, strict=True):
                out[number] = states
        return out

    def observe(self, sequence: Sequence, hidden: Tensor) -> None:
        """Takes the states of the next positions of one sequence for the drafter."""
        if self.modules:
            held = sequence.draft_hidden
            sequence.draft_hidden = hidden if held is None else torch.cat([held, hidden])

    def catch_up(self, sequences: list[Sequence]) -> None:
        """Runs the MTP modules over the positions whose following tokens are known; the chunks of a prompt."""
        ready = [(s, min(_seen(s) - 1, len(s.tokens) - self.modules)) for s in sequences]  # the newest state is `propose`'s
        ready = [(s, end) for s, end in ready if end > s.draft_start]
        for numbers in _by_width(end - s.draft_start for s, end in ready):
            self._modules([ready[number][0] for number in numbers], ready[numbers[0]][1] - ready[numbers[0]][0].draft_start, 0)

    def propose(self, sequences: list[Sequence], num_drafts: int) -> list[list[int]]:
        """Guesses for the tokens after each sequence's last."""
        out: list[list[int]] = [[] for _ in sequences]
        for numbers in _by_width(_seen(s) - s.draft_start for s in sequences):
            group = [sequences[number] for number in numbers]
            for number, drafts in zip(numbers, self._modules(group, _seen(group[0]) - group[0].draft_start, num_drafts), strict=True):
                out[number] = drafts
        return out

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
            hidden = self.model.mtp_hidden(index, hidden, self._tensor(ids), positions, self._view(group, positions))
            if num_drafts:
                places = [start + width + 1 + module for start in starts]
                logits = self.model.logits(hidden[:, -1])
                drawn = sample(logits, [s.params for s in group], [s.choice for s in group], places, self._vocab_limit).tolist()
                for tokens, guess, token in zip(known, guesses, drawn, strict=True):
                    tokens.append(token)
                    guess.append(token)
        for s in group:  # the last modules - 1 positions were run with guesses
            end = s.draft_start + width
            final = max(s.draft_start, end - self.modules + 1) if num_drafts else end
            s.draft_hidden = _pending(s)[final - s.draft_start :]
            s.draft_start = final
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
    assert sequence.draft_hidden is not None
    return sequence.draft_hidden


def _seen(sequence: Sequence) -> int:
    return sequence.draft_start + (0 if sequence.draft_hidden is None else len(sequence.draft_hidden))
