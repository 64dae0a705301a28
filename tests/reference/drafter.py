"""Speculative decoding with MTP modules (report sections 2.2 and 5.4.3): cheap drafts that the main model checks in one forward.

    drafts d_1..d_k from modules 1..k; the trunk runs on [t_n, d_1..d_k] and yields its own samples s_1..s_{k+1};
    s_1 is committed always, s_{j+1} as long as d_j = s_j

Output is that of plain decoding, token for token, greedy or sampled: only the target's own samples are committed, and they draw
from noise keyed by position. A draft is a guess and nothing else; its end token ends nothing (field case F18). Draft and target
share the noise, so a draft from the right distribution is accepted. For comparison with published acceptance figures the rule
with min(1, p/q) and residual resampling is here as pure functions.

Module j (0-based) at position i takes h^j_i and the embedding of t_{i+1+j}. Its cache entry is final once t_{i+1+j} is committed, so
entries made from drafts are rolled back after each step. Shape letters: b rows, s positions, m model width, k drafts, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rorqual.errors import ConfigError
from rorqual.inference.sampler import sample
from rorqual.model.transformer import CausalLM
from tests.reference.cache import RowCache
from tests.reference.sequence import Sequence


class Drafter(Protocol):
    """Guesses the next tokens of sequences. `num_drafts` is how many each `propose` gives per row."""

    num_drafts: int

    def start_of(self, cache: RowCache) -> list[int]:
        """Per row, how many leading positions need no `observe`, because what they leave behind is in the cache already."""
        ...

    def observe(self, sequences: Many[Sequence], hidden: Many[Float[Tensor, "_ m"]], cache: RowCache) -> None:
        """Takes the trunk's states of each sequence's next positions; all earlier ones were given before, or are cached."""
        ...

    def propose(self, sequences: Many[Sequence], cache: RowCache) -> Int[Tensor, "b k"]:
        """Guesses for the tokens after each sequence's last committed one."""
        ...


class MTPDrafter:
    """Drafts with the model's own first `num_drafts` MTP modules, whose latents live in the same cache as the trunk's."""

    def __init__(self, model: CausalLM, num_drafts: int, vocab_limit: int | None = None) -> None:
        depth = model.config.num_nextn_predict_layers
        if not 1 <= num_drafts <= depth:
            have = f"{depth} MTP module{'s' * (depth != 1)}" if depth else "no MTP module (num_nextn_predict_layers is 0)"
            raise ConfigError(
                f"num_drafts ({num_drafts}) needs as many MTP modules, and this model has {have}; use a number from 0 to {depth}"
            )
        self.num_drafts, self._model, self._vocab_limit = num_drafts, model, vocab_limit
        first = model.config.num_hidden_layers
        self._layers = range(first, first + num_drafts)

    def start_of(self, cache: RowCache) -> list[int]:
        """The shortest of the modules' caches, row by row."""
        return [min(lengths) for lengths in zip(*(cache.lengths_of(layer) for layer in self._layers), strict=True)]

    def observe(self, sequences: Many[Sequence], hidden: Many[Float[Tensor, "_ m"]], cache: RowCache) -> None:
        """Keeps the states; while a prompt is read, also runs them through the modules, as far as its tokens are known."""
        for sequence, states in zip(sequences, hidden, strict=True):
            sequence.draft_hidden = states if sequence.draft_hidden is None else torch.cat([sequence.draft_hidden, states])
        seen = [(row, self._seen(sequence)) for row, sequence in enumerate(sequences) if len(sequence.output) == 0]
        final = [(row, min(end, len(sequences[row].tokens) - self.num_drafts)) for row, end in seen]
        ready = [(row, end) for row, end in final if end > sequences[row].draft_start]
        if ready:
            rows = [row for row, _ in ready]
            self._run([sequences[row] for row in rows], [end for _, end in ready], cache.rows(rows), draft=False)

    def propose(self, sequences: Many[Sequence], cache: RowCache) -> Int[Tensor, "b k"]:
        """Runs the modules up to each sequence's newest state and takes their samples there."""
        drafts = self._run(sequences, [self._seen(sequence) for sequence in sequences], cache, draft=True)
        return torch.stack(drafts, dim=1)

    @staticmethod
    def _seen(sequence: Sequence) -> int:
        """Positions whose trunk state was observed."""
        return sequence.draft_start + (0 if sequence.draft_hidden is None else len(sequence.draft_hidden))

    def _run(self, sequences: Many[Sequence], ends: Many[int], cache: RowCache, draft: bool) -> list[Int[Tensor, " b"]]:
        """All modules over positions draft_start..end-1 of each row, and roll-back to what is final.

        Shorter rows are filled up behind their end, where causality hides the filling, which the roll-back then removes.
        """
        starts = [sequence.draft_start for sequence in sequences]
        widths = [end - start for start, end in zip(starts, ends, strict=True)]
        width = max(widths)
        pending = [_rows_of(sequence)[:own] for sequence, own in zip(sequences, widths, strict=True)]
        hidden = torch.stack([torch.cat([states, states[-1:].expand(width - len(states), -1)]) for states in pending])
        device = hidden.device
        positions = torch.tensor([list(range(start, start + width)) for start in starts], device=device)
        last = torch.tensor(widths, device=device) - 1
        row = torch.arange(len(sequences), device=device)
        cache.truncate(starts, self._layers)
        known = [
            [*sequence.tokens[start + 1 : end + self.num_drafts]] for sequence, start, end in zip(sequences, starts, ends, strict=True)
        ]
        params, choices = [s.params for s in sequences], [s.choice for s in sequences]
        drafts: list[Tensor] = []
        for module in range(self.num_drafts):
            ids = [_filled(tokens[module : module + own], width) for tokens, own in zip(known, widths, strict=True)]
            hidden = self._model.mtp_hidden(module, hidden, torch.tensor(ids, device=device), positions, cache)
            if draft:
                places = [end + 1 + module for end in ends]
                drafts.append(sample(self._model.logits(hidden[row, last]), params, choices, places, self._vocab_limit))
                for tokens, token in zip(known, drafts[-1].tolist(), strict=True):
                    tokens.append(token)
        final = [max(start, end - self.num_drafts + 1) if draft else end for start, end in zip(starts, ends, strict=True)]
        cache.truncate(final, self._layers)
        for sequence, start, end in zip(sequences, starts, final, strict=True):
            sequence.draft_hidden = _rows_of(sequence)[end - start :]
            sequence.draft_start = end
        return drafts


def _rows_of(sequence: Sequence) -> Tensor:
    assert sequence.draft_hidden is not None
    return sequence.draft_hidden


def _filled(tokens: list[int], width: int) -> list[int]:
    return tokens + tokens[-1:] * (width - len(tokens))
