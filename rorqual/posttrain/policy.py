"""The trainer's own look at a rollout: log-probabilities of the answers' tokens, with the rollout's experts and sampling sets replayed.

    scored = score(model, rows, temperature=1.0)       # with gradient; rows of one micro-batch
    scored.logp                                        # [n], tokens of all answers, one after the other

Log-probabilities are of the distribution that tokens were drawn from: vocabulary limit, temperature, and where top-k or top-p left
tokens out, only the kept set. Rows are padded on the right, where causal attention cannot see it; only the hidden states that
predict an answer's token meet the head, in pieces, so logits are never held whole. Head and router are FP32 (report section 3.3).
Shape letters: r rows, s positions, n answer tokens, m model width, v vocabulary, l MoE layers, k chosen experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rorqual.inference.params import SamplingParams
from rorqual.inference.sampler import scores
from rorqual.model.transformer import CausalLM

_PIECE = 2**21  # logits held at a time


@dataclass(frozen=True)
class Kept:
    """For each token of an answer the ids that could have been drawn: `ids[offsets[t] : offsets[t + 1]]`."""

    ids: Int[Tensor, " i"]
    offsets: Int[Tensor, " o"]

    def mask(self, first: int, last: int, width: int) -> Bool[Tensor, "n v"]:
        """The sets of tokens `first` to `last` - 1 as rows."""
        bounds = self.offsets[first : last + 1]
        row = torch.repeat_interleave(torch.arange(last - first, device=self.ids.device), bounds.diff())
        out = torch.zeros(last - first, width, dtype=torch.bool, device=self.ids.device)
        out[row, self.ids[int(bounds[0]) : int(bounds[-1])].long()] = True
        return out

    @staticmethod
    def join(parts: Sequence[Kept]) -> Kept:
        """Sets of several answers, one after the other."""
        counts = torch.cat([part.offsets.diff() for part in parts])
        return Kept(torch.cat([part.ids for part in parts]), torch.cat([counts.new_zeros(1), counts.cumsum(0)]))

    def split(self, lengths: Sequence[int]) -> list[Kept]:
        """The inverse of `join`."""
        out, first = [], 0
        for length in lengths:
            bounds = self.offsets[first : first + length + 1]
            out.append(Kept(self.ids[int(bounds[0]) : int(bounds[-1])].clone(), bounds - bounds[0]))
            first += length
        return out


@dataclass(frozen=True)
class Row:
    """One answer behind its prompt. `routes` [len(prompt) + len(answer) - 1, l, k] or None; `kept` where a filter was on."""

    prompt: Sequence[int]
    answer: Sequence[int]
    routes: Int[Tensor, "s l k"] | None = None
    kept: Kept | None = None


@dataclass(frozen=True)
class Scored:
    """`logp` with gradient, `plain` (the model's own distribution) and `entropy` without; `answer[i]` is the row of token i.

    flips: (token, expert) choices of the live router that differ from the replayed ones, of `routed` that were compared.
    """

    logp: Float[Tensor, " n"]
    plain: Float[Tensor, " n"]
    entropy: Float[Tensor, " n"]
    answer: Int[Tensor, " n"]
    flips: int
    routed: int
    routes: list[Int[Tensor, "s l k"]]
    loads: Int[Tensor, "l e"] | None


def micro_batches(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Numbers of the rows of each micro-batch: of similar length, padded to at most `limit` tokens; a longer row stands alone."""
    order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    part: list[int] = []
    for number in order:
        if part and lengths[part[0]] * (len(part) + 1) > limit:
            yield part
            part = []
        part.append(number)
    if part:
        yield part


def score(
    model: CausalLM, rows: Sequence[Row], *, temperature: float = 1.0, vocab_limit: int | None = None, replay: bool = True,
    params: SamplingParams | None = None, record: bool = False,
) -> Scored:  # fmt: skip
    """Log-probabilities of one micro-batch. `replay` False leaves the experts to the router.

    With `record` the experts that were used come back in `routes`. With `params`, whose filters are on, see `kept_sets` first.
    """
    device = model.head_weight.device
    tokens = [[*row.prompt, *row.answer] for row in rows]
    width = max(len(one) for one in tokens) - 1
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    for number, one in enumerate(tokens):
        ids[number, : len(one) - 1] = torch.tensor(one[:-1])
    routes = _routes(model, rows, width) if replay and any(row.routes is not None for row in rows) else None
    out = model(ids.to(device), routes=None if routes is None else routes.to(device))
    place = torch.cat([torch.arange(len(row.answer)) + number * width + len(row.prompt) - 1 for number, row in enumerate(rows)])
    answer = torch.cat([torch.full((len(row.answer),), number) for number, row in enumerate(rows)])
    targets = torch.cat([torch.tensor(list(row.answer), dtype=torch.int64) for row in rows])
    hidden = out.hidden.flatten(0, 1)[place.to(device)]
    kept = Kept.join([row.kept for row in rows]) if all(row.kept is not None for row in rows) else None  # type: ignore[misc]
    logp, plain, entropy = LogProbs.apply(hidden.float(), model.head_weight.float(), targets.to(device), temperature, vocab_limit, kept)
    real = torch.tensor([[at < len(one) - 1 for at in range(width)] for one in tokens], device=device).flatten()
    flips, routed = _flips(out.routings, routes, device)
    loads = None
    if out.routings:
        experts = model.config.n_routed_experts
        loads = torch.stack([torch.bincount(routing.indices[real].flatten(), minlength=experts) for routing in out.routings])
    used: list[Tensor] = []
    if record and out.routings:
        chosen = torch.stack([routing.indices for routing in out.routings], dim=1).view(len(rows), width, len(out.routings), -1)
        used = [chosen[number, : len(one) - 1].to(torch.int16).cpu() for number, one in enumerate(tokens)]
    return Scored(logp, plain, entropy, answer.to(device), flips, routed, used, loads)


def _routes(model: CausalLM, rows: Sequence[Row], width: int) -> Int[Tensor, "l r s k"]:
    known = next(row.routes for row in rows if row.routes is not None)
    out = torch.full((known.shape[1], len(rows), width, known.shape[2]), -1, dtype=torch.int64)
    for number, row in enumerate(rows):
        if row.routes is not None:
            out[:, number, : len(row.routes)] = row.routes.transpose(0, 1).long()
    return out


def _flips(routings: tuple[Any, ...], routes: Tensor | None, device: torch.device) -> tuple[int, int]:
    if routes is None:
        return 0, 0
    flips = total = 0
    for routing, given in zip(routings, routes, strict=True):
        flat = given.flatten(0, 1).to(device)
        known = flat[:, 0] >= 0
        same = (routing.own[known].unsqueeze(2) == flat[known].unsqueeze(1)).any(dim=2)
        flips, total = flips + int((~same).sum()), total + same.numel()
    return flips, total


class LogProbs(torch.autograd.Function):
    """log softmax(hidden W^T / T) at the targets, over the ids below the limit and in the kept sets; logits come anew in backward."""

    @staticmethod
    def forward(ctx, hidden, head, targets, temperature, vocab_limit, kept):  # type: ignore[no-untyped-def]
        weight = head[:vocab_limit]
        step = max(1, _PIECE // len(weight))
        logp, plain, entropy, norm = (hidden.new_empty(len(hidden)) for _ in range(4))
        for first in range(0, len(hidden), step):
            part = slice(first, min(first + step, len(hidden)))
            logits = hidden[part] @ weight.t()
            at = targets[part].unsqueeze(1)
            raw = logits.gather(1, at).squeeze(1)
            top = logits.amax(dim=1, keepdim=True)
            mass = (logits - top).exp_()
            total = mass.sum(dim=1)
            whole = top.squeeze(1) + total.log()
            plain[part] = raw - whole
            entropy[part] = whole - torch.linalg.vecdot(mass, logits) / total
            if temperature != 1.0 or kept is not None:
                logits, raw = logits / temperature, raw / temperature
                if kept is not None:
                    logits = logits.masked_fill(~kept.mask(part.start, part.stop, len(weight)), float("-inf"))
                whole = logits.logsumexp(dim=1)
            logp[part], norm[part] = raw - whole, whole
        ctx.save_for_backward(hidden, head, targets, norm)
        ctx.settings = temperature, vocab_limit, kept, step
        ctx.mark_non_differentiable(plain, entropy)
        return logp, plain, entropy

    @staticmethod
    def backward(ctx, d_logp, _plain, _entropy):  # type: ignore[no-untyped-def]
        hidden, head, targets, norm = ctx.saved_tensors
        temperature, vocab_limit, kept, step = ctx.settings
        weight = head[:vocab_limit]
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_head = torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        for first in range(0, len(hidden), step):
            part = slice(first, min(first + step, len(hidden)))
            logits = hidden[part] @ weight.t()
            if temperature != 1.0:
                logits = logits / temperature
            d_logits = logits.sub_(norm[part].unsqueeze(1)).exp_()
            if kept is not None:
                d_logits = d_logits.masked_fill(~kept.mask(part.start, part.stop, len(weight)), 0.0)
            scale = (d_logp[part] / temperature).unsqueeze(1)
            d_logits *= -scale
            d_logits.scatter_add_(1, targets[part].unsqueeze(1), scale)
            if d_hidden is not None:
                d_hidden[part] = d_logits @ weight
            if d_head is not None:
                d_head[:vocab_limit] += d_logits.t() @ hidden[part]
        return d_hidden, d_head, None, None, None, None


@torch.no_grad()
def kept_sets(
    model: CausalLM, rows: Sequence[Row], params: SamplingParams, *, vocab_limit: int | None = None, replay: bool = True
) -> list[Kept]:
    """The sets that top-k, top-p and min-p left at each token of each answer, by the sampler's own rule on the trainer's logits.

    A token that was drawn belongs to its set even where rounding would have put it just outside.
    """
    device = model.head_weight.device
    out = []
    for row in rows:
        ids = torch.tensor([[*row.prompt, *row.answer]], device=device)
        routes = None
        if replay and row.routes is not None:
            routes = _routes(model, [row], ids.shape[1] - 1).to(device)
        hidden = model(ids[:, :-1], routes=routes).hidden[0, len(row.prompt) - 1 :]
        allowed = scores(model.logits(hidden)[:, :vocab_limit], [params] * len(hidden)) > float("-inf")
        allowed[torch.arange(len(hidden)), torch.tensor(list(row.answer), device=device)] = True
        counts = allowed.sum(dim=1)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        out.append(Kept(allowed.nonzero()[:, 1].to(torch.int32), offsets))
    return out
