"""From logits to a token: penalties, temperature, filters, and randomness as a pure function of a key.

    token = argmax_v ( log p_v + G_v ),    G_v = -log(-log U_v)          (Gumbel's form of drawing from p)

U depends on (seed, choice index, position, purpose) and v alone, never on who shares the batch, on the chunking or on earlier
draws, so batching and speculation cannot change an answer (field cases F11, F18). A temperature below 1e-5 is argmax before
anything else. Ids from `vocab_limit` up belong to no token and are masked before the softmax (F22).
Shape letters: b rows, v vocabulary.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rorqual.errors import NonFiniteError
from rorqual.inference.params import GREEDY_BELOW, SamplingParams
from rorqual.kernels import sampling

__all__ = [
    "Draw",
    "Drawn",
    "GREEDY_BELOW",
    "SamplingParams",
    "TokenLogprobs",
    "draw",
    "key",
    "refuse_nan",
    "sample",
    "scores",
    "token_logprobs",
    "uniform",
]


def key(seed: int, choice: int, position: int, purpose: str) -> int:
    """Signed 64-bit key of one draw; `position` is the place of the drawn token in its sequence, prompt included."""
    text = f"{seed}:{choice}:{position}:{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


_STEP, _MIX_1, _MIX_2 = (_signed(word) for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift(x: Tensor, places: int) -> Tensor:
    """Right shift that brings in zeros; torch's own repeats the sign."""
    return (x >> places) & ((1 << (64 - places)) - 1)


def uniform(keys: Int[Tensor, " b"], size: int) -> Float[Tensor, "b v"]:
    """`size` numbers of (0, 1) per key in FP64: SplitMix64's finaliser over counters, the same on every device."""
    counters = torch.arange(1, size + 1, dtype=torch.int64, device=keys.device) * _STEP
    x = keys.unsqueeze(1) + counters
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    x = x ^ _shift(x, 31)
    return (_shift(x, 11).double() + 0.5) * 2.0**-53


def scores(logits: Float[Tensor, "b v"], params: Sequence[SamplingParams], vocab_limit: int | None = None) -> Float[Tensor, "b v"]:
    """Unnormalised log-probabilities in FP64 that each row is drawn from; -inf where a token cannot be drawn.

    Order: vocabulary limit, temperature, min-p, top-k, then top-p over what is left. Exactly k tokens survive top-k, equal ones in
    order of their ids; top-p keeps the fewest tokens that reach the probability, at least one; min-p keeps tokens of at least that
    share of the largest probability. Greedy rows stay as they are.
    """
    out = logits.double()
    if vocab_limit is not None and vocab_limit < out.shape[1]:
        out[:, vocab_limit:] = float("-inf")
    if all(p.greedy for p in params):
        return out
    out = out / _column([1.0 if p.greedy else p.temperature for p in params], out)
    if any(p.min_p > 0 and not p.greedy for p in params):
        least = _column([0.0 if p.greedy else p.min_p for p in params], out).log()
        out = out.masked_fill(out < out.amax(dim=-1, keepdim=True) + least, float("-inf"))
    if all(p.greedy or (p.top_k == 0 and p.top_p == 1) for p in params):
        return out
    width = out.shape[1]
    ordered, order = out.sort(dim=-1, descending=True, stable=True)
    top_k = _column([float(p.top_k) if p.top_k and not p.greedy else float(width) for p in params], out)
    ordered = ordered.masked_fill(torch.arange(width, device=out.device) >= top_k, float("-inf"))
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    top_p = _column([2.0 if p.greedy or p.top_p == 1 else p.top_p for p in params], out)
    ordered = ordered.masked_fill(before >= top_p, float("-inf"))
    return torch.full_like(out, float("-inf")).scatter(1, order, ordered)


def sample(
    logits: Float[Tensor, "b v"],
    params: Sequence[SamplingParams],
    choices: Sequence[int],
    positions: Sequence[int],
    vocab_limit: int | None = None,
) -> Int[Tensor, " b"]:
    """One token per row by temperature and filters alone; `positions[i]` is where row i's token will stand in its sequence.

    A draft and its target that are drawn at the same position share the noise, so a draft whose distribution is right is
    the target's own sample. NonFiniteError for logits with NaN.
    """
    width = logits.shape[1] if vocab_limit is None else min(vocab_limit, logits.shape[1])
    if sampling.usable(logits) and not any(p.filters and not p.greedy for p in params):
        tokens = sampling.draw(logits, _keys(params, choices, positions), [0.0 if p.greedy else p.temperature for p in params], width)
        refuse_nan(tokens.tolist() or [0])
        return tokens
    if all(p.greedy for p in params):
        best, tokens = logits[:, :width].max(dim=-1)
    else:
        best, tokens = (scores(logits[:, :width], params) + _noise(params, choices, positions, width, logits.device)).max(dim=-1)
    refuse_nan(torch.where(best.isnan(), -1, tokens).tolist() or [0])
    return tokens


def _keys(params: Sequence[SamplingParams], choices: Sequence[int], positions: Sequence[int]) -> list[int]:
    return [0 if p.greedy else key(p.seed, choice, place, "sample") for p, choice, place in zip(params, choices, positions, strict=True)]


def _noise(
    params: Sequence[SamplingParams], choices: Sequence[int], positions: Sequence[int], width: int, device: torch.device
) -> Float[Tensor, "b v"]:
    """Gumbel noise of the sampled rows, zeros for the greedy ones."""
    noise = torch.zeros(len(params), width, dtype=torch.float64, device=device)
    rows = [row for row, p in enumerate(params) if not p.greedy]
    keys = _keys(params, choices, positions)
    drawn = uniform(torch.tensor([keys[row] for row in rows], dtype=torch.int64, device=device), width)
    noise[rows] = -(-drawn.log()).log()
    return noise


def refuse_nan(tokens: Sequence[int]) -> None:
    """NonFiniteError where a row's token is -1: its logits held NaN."""
    if min(tokens) < 0:
        row = next(row for row, token in enumerate(tokens) if token < 0)
        raise NonFiniteError(f"logits of row {row} contain NaN; the weights or an activation are not finite, check the checkpoint")


# ---------------------------------------------------------------------- requests with penalties, grammars, log-probabilities


@dataclass(frozen=True, eq=False)
class Draw:
    """One token to be drawn. `history` is every token before it, drafts included, of which the first `num_prompt_tokens` are the prompt.

    `mask` is True where a grammar allows a token (None: everywhere); `stop_ids` are the tokens that end the answer.
    """

    params: SamplingParams
    choice: int
    position: int
    history: Sequence[int] = ()
    num_prompt_tokens: int = 0
    mask: Bool[Tensor, " v"] | None = None
    stop_ids: frozenset[int] = field(default_factory=frozenset)


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities at one place, of the model's own distribution: the token's, its rank from 1, and the most likely (id, value)s."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, eq=False)
class Drawn:
    """One token per row, and log-probabilities for the rows that asked."""

    tokens: Int[Tensor, " b"]
    logprobs: list[TokenLogprobs | None]


def draw(logits: Float[Tensor, "b v"], draws: Sequence[Draw], vocab_limit: int | None = None) -> Drawn:
    """Draws each row as its request says; a pure function of the row, so neighbours, chunks and drafts cannot change it.

    Order: vocabulary limit, minimum length, grammar, logit bias, penalties, then `scores`. NonFiniteError for logits with NaN.
    """
    params = [d.params for d in draws]
    changed = [row for row, d in enumerate(draws) if d.mask is not None or d.params.adjusts]
    adjusted = logits
    if changed:
        adjusted = logits.double()
        for row in changed:
            adjusted[row] = _adjusted(adjusted[row], draws[row])
    tokens = sample(adjusted, params, [d.choice for d in draws], [d.position for d in draws], vocab_limit)
    found: list[TokenLogprobs | None] = [None] * len(draws)
    asked = [row for row, p in enumerate(params) if p.logprobs is not None]
    if asked:
        counts = [params[row].logprobs or 0 for row in asked]
        for row, one in zip(asked, token_logprobs(logits[asked], tokens[asked].tolist(), counts, vocab_limit), strict=True):
            found[row] = one
    return Drawn(tokens, found)


def token_logprobs(
    logits: Float[Tensor, "b v"], tokens: Sequence[int], top: Sequence[int], vocab_limit: int | None = None
) -> list[TokenLogprobs]:
    """Log-probability of `tokens[i]` in row i, and of the `top[i]` most likely tokens, equal ones in order of their ids."""
    width = logits.shape[1] if vocab_limit is None else min(vocab_limit, logits.shape[1])
    if sampling.usable(logits) and not any(top):
        found = sampling.token_logprobs(logits, tokens, width)
        return [TokenLogprobs(token, value, rank, ()) for token, value, rank in zip(tokens, *found, strict=True)]
    table = logits[:, :width].double().log_softmax(dim=-1)
    at = torch.tensor(list(tokens), dtype=torch.int64, device=logits.device).unsqueeze(1)
    own = table.gather(1, at)
    ids = torch.arange(width, device=logits.device)
    ranks = 1 + ((table > own) | ((table == own) & (ids < at))).sum(dim=1)
    most = min(max(top, default=0), width)
    values, order = table.sort(dim=-1, descending=True, stable=True) if most else (table, table.long())
    out = []
    for row, count in enumerate(top):
        best = zip(order[row, :count].tolist(), values[row, :count].tolist(), strict=True) if count else ()
        listed = tuple((number, value) for number, value in best if value > float("-inf"))
        out.append(TokenLogprobs(int(tokens[row]), float(own[row]), int(ranks[row]), listed))
    return out


def _adjusted(row: Float[Tensor, " v"], one: Draw) -> Float[Tensor, " v"]:
    """The row's logits under minimum length, grammar, bias and penalties."""
    params, output = one.params, one.history[one.num_prompt_tokens :]
    allowed = torch.ones(row.shape, dtype=torch.bool, device=row.device)
    if one.mask is not None:
        allowed = torch.zeros_like(allowed)
        allowed[: len(one.mask)] = one.mask[: len(allowed)]
    if len(output) < params.min_tokens and one.stop_ids:
        longer = allowed.clone()
        longer[[token for token in one.stop_ids if token < len(row)]] = False
        allowed = longer if bool(longer.any()) else allowed  # a grammar that is complete ends the answer
    row = row.masked_fill(~allowed, float("-inf"))
    for token, bias in params.logit_bias.items():
        if token < len(row):
            row[token] += bias
    if params.repetition_penalty != 1.0 and one.history:
        seen = torch.tensor(sorted(set(one.history)), device=row.device)
        value = row[seen]
        row[seen] = torch.where(value > 0, value / params.repetition_penalty, value * params.repetition_penalty)
    if output and (params.presence_penalty or params.frequency_penalty):
        counts = Counter(output)
        seen = torch.tensor(list(counts), device=row.device)
        times = torch.tensor(list(counts.values()), dtype=row.dtype, device=row.device)
        row[seen] -= params.presence_penalty + params.frequency_penalty * times
    return row


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device).unsqueeze(1)
