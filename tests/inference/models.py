"""Tiny models, drafters with a fixed opinion, and generation without a cache, which all faster ways must equal."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any

import torch

from rorqual.inference.graphs import Body, Recording
from rorqual.inference.sampler import SamplingParams, sample
from rorqual.model.transformer import CausalLM
from tests.reference.cache import ContiguousCache, RowCache
from tests.reference.drafter import MTPDrafter
from tests.reference.sequence import Sequence
from tests.tiny import t0

GREEDY = SamplingParams(max_tokens=32, temperature=0, ignore_eos=True)


def build(seed: int = 3, **changes: Any) -> CausalLM:
    """T0 with weights wide enough that attention and experts decide the next token."""
    model = CausalLM(t0(**{"initializer_range": 0.1, **changes}))
    model.init_weights(seed)
    return model


def agreeing(depth: int = 1, right: bool = False) -> CausalLM:
    """A model whose MTP modules take over the next token's embedding, so that their drafts are often right.

    With `right`, blocks add nothing and the next token depends on the last one alone: every draft is right.
    """
    model = build(seed=5, num_nextn_predict_layers=depth)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(0.0 if right else 0.06)
            elif name.endswith("eh_proj.weight"):
                parameter.mul_(0.0 if right else 0.2)
                parameter[:, : parameter.shape[0]] += torch.eye(parameter.shape[0])
    return model


def prompt(length: int, seed: int = 0) -> list[int]:
    """Reproducible token ids."""
    return torch.randint(2, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def make_cache(model: CausalLM, rows: int, drafts: int = 0, capacity: int = 8) -> ContiguousCache:
    """A small cache in test mode: it has to grow, and its free slots hold NaN."""
    return ContiguousCache(model.config, rows, num_layers=model.config.num_hidden_layers + drafts, capacity=capacity, poison=True)


@torch.no_grad()
def without_cache(model: CausalLM, ids: Many[int], params: SamplingParams, vocab_limit: int | None = None) -> list[int]:
    """Reads everything anew for every token."""
    tokens = list(ids)
    for _ in range(params.max_tokens or 0):
        hidden = model(torch.tensor([tokens])).hidden[:, -1]
        tokens += sample(model.logits(hidden), [params], [0], [len(tokens)], vocab_limit).tolist()
    return tokens[len(ids) :]


@torch.no_grad()
def is_its_own_choice(model: CausalLM, ids: Many[int], output: Many[int], params: SamplingParams, choice: int = 0) -> bool:
    """Whether one forward without a cache over prompt and output would have chosen each token of the output."""
    tokens = [*ids, *output]
    logits = model.logits(model(torch.tensor([tokens])).hidden)[0, len(ids) - 1 : -1]
    places = list(range(len(ids), len(tokens)))
    return sample(logits, [params] * len(places), [choice] * len(places), places).tolist() == list(output)


class FixedDrafter:
    """Drafts that are always right, always wrong, or always the end token; `answers` are the plain outputs."""

    def __init__(self, kind: str, answers: Many[Many[int]], num_drafts: int = 1, eos: int = 1) -> None:
        self.num_drafts, self._kind, self._answers, self._eos = num_drafts, kind, answers, eos

    def start_of(self, cache: RowCache) -> list[int]:
        return cache.lengths

    def observe(self, sequences: Many[Sequence], hidden: Many[torch.Tensor], cache: RowCache) -> None:
        assert all(len(states) >= 1 for states in hidden)

    def propose(self, sequences: Many[Sequence], cache: RowCache) -> torch.Tensor:
        return torch.tensor([[self._guess(s, ahead) for ahead in range(self.num_drafts)] for s in sequences])

    def _guess(self, sequence: Sequence, ahead: int) -> int:
        answer = self._answers[sequence.index]
        place = len(sequence.output) + ahead
        true = answer[place] if place < len(answer) else 0
        return {"right": true, "wrong": (true + 1) % 256, "eos": self._eos}[self._kind]


class CheckedDrafter(MTPDrafter):
    """Compares every draft with the MTP modules run without a cache on the tokens known at that moment."""

    compared = 0

    def propose(self, sequences: Many[Sequence], cache: RowCache) -> torch.Tensor:
        drafts = super().propose(sequences, cache)
        for sequence, row in zip(sequences, drafts.tolist(), strict=True):
            for module, draft in enumerate(row):
                tokens = torch.tensor([[*sequence.tokens, *row[:module]]])
                hidden = self._model(tokens, mtp=True).mtp_hidden[module][:, -1]
                place = len(sequence.tokens) + module
                want = sample(self._model.logits(hidden), [sequence.params], [sequence.choice], [place], self._vocab_limit)
                assert [draft] == want.tolist()
                self.compared += 1
        return drafts


def replaying(body: Body) -> Recording:
    """A recorder without a device: replay runs the function again and copies its results to where the first ones lie."""
    outputs = body()

    def replay() -> None:
        for into, new in zip(outputs, body(), strict=True):
            into.copy_(new)

    return Recording(outputs, replay)
