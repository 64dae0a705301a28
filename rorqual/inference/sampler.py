"""From logits to a token: temperature, top-k, top-p, and randomness as a pure function of a key.

    token = argmax_v ( log p_v + G_v ),    G_v = -log(-log U_v)          (Gumbel's form of drawing from p)

U depends on (seed, choice index, position, purpose) and v alone, never on who shares the batch, on the chunking or on earlier
draws, so batching and speculation cannot change an answer (field cases F11, F18). A temperature below 1e-5 is argmax before
anything else. Ids from `vocab_limit` up belong to no token and are masked before the softmax (F22).
Shape letters: b rows, v vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rorqual.errors import ConfigError, NonFiniteError

GREEDY_BELOW = 1e-5


@dataclass(frozen=True)
class SamplingParams:
    """How one prompt is continued. `top_k` 0 and `top_p` 1 are off; `max_tokens` None is up to the model's context.

    `n` choices of one prompt draw from streams of their own under one seed. Generation stops at the model's end token
    (unless `ignore_eos`) and at `stop_token_ids`.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    n: int = 1
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, least in (("top_k", 0), ("n", 1), ("max_tokens", 1)):
            value = getattr(self, name)
            if not (name == "max_tokens" and value is None) and (type(value) is not int or value < least):
                raise ConfigError(f"{name} ({value!r}) must be a whole number of at least {least}")
        if type(self.seed) is not int:
            raise ConfigError(f"seed ({self.seed!r}) must be a whole number")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature ({self.temperature}) must be 0 (greedy) or a positive number")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p ({self.top_p}) must be above 0 and at most 1 (off)")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, without a draw."""
        return self.temperature < GREEDY_BELOW


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

    Order: vocabulary limit, temperature, top-k, then top-p over what top-k left. Exactly k tokens survive top-k, equal ones in
    order of their ids; top-p keeps the fewest tokens that reach the probability, at least one. Greedy rows stay as they are.
    """
    out = logits.double()
    if vocab_limit is not None and vocab_limit < out.shape[1]:
        out[:, vocab_limit:] = float("-inf")
    if all(p.greedy for p in params):
        return out
    out = out / _column([1.0 if p.greedy else p.temperature for p in params], out)
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
    """One token per row; `positions[i]` is where row i's token will stand in its sequence. NonFiniteError for logits with NaN.

    A draft and its target that are drawn at the same position share the noise, so a draft whose distribution is right is
    the target's own sample.
    """
    if all(p.greedy for p in params):
        best, tokens = logits[:, :vocab_limit].max(dim=-1)
    else:
        width = logits.shape[1] if vocab_limit is None else min(vocab_limit, logits.shape[1])
        drawn = [(p.seed, c, at) for p, c, at in zip(params, choices, positions, strict=True)]
        keys = torch.tensor([key(*parts, "sample") for parts in drawn], dtype=torch.int64, device=logits.device)
        noise = -(-uniform(keys, width).log()).log()
        noise = noise.masked_fill(_column([float(p.greedy) for p in params], noise) > 0, 0.0)
        best, tokens = (scores(logits[:, :width], params) + noise).max(dim=-1)
    if bool(best.isnan().any()):
        row = int(best.isnan().nonzero()[0])
        raise NonFiniteError(f"logits of row {row} contain NaN; the weights or an activation are not finite, check the checkpoint")
    return tokens


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device).unsqueeze(1)
