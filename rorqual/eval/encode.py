"""Where a context ends and its continuation begins in token ids, and how a text longer than the window is cut (field case F40). No torch.

Context and continuation are encoded together, so a token that spans the boundary is the one that the model would see. Spaces at the end
of the context move to the continuation, because word-initial tokens carry them. With c the ids of the context alone, w those of both and
k the number of leading ids they share, the continuation's log-probability is the difference of two full sequences,

    sum_{i >= k} log p(w_i | w_<i)  -  sum_{i >= k} log p(c_i | c_<i),

where the second sum is empty unless a token spans the boundary. There is exactly one BOS, where the model was trained with it; an empty
context is the start of a document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rorqual.errors import ConfigError, DataError
from rorqual.tokenizer.bpe import Tokenizer


@dataclass(frozen=True)
class Pair:
    """Ids of a context and of context and continuation together; the first `shared` ids are the same, and at least one is."""

    context: list[int]
    whole: list[int]
    shared: int


class Encoder:
    """Encodes for one model; `start` are the ids before a text: BOS where the model was trained with it, else nothing."""

    def __init__(self, tokenizer: Tokenizer, eos_id: int) -> None:
        bos = tokenizer.bos_id
        self.tokenizer = tokenizer
        self.start: list[int] = [bos] if tokenizer.adds_bos and bos is not None else []
        self.first = self.start or [eos_id]
        """Ids that begin a document."""

    def context(self, text: str) -> list[int]:
        """Ids of a prompt; an empty one begins a document."""
        return self._started(self.tokenizer.encode(text)) or list(self.first)

    def pairs(self, texts: Sequence[tuple[str, str]]) -> list[Pair]:
        """Ids of (context, continuation)s, each text encoded once, on all cores. DataError for a continuation without a token."""
        moved = []
        for context, continuation in texts:
            kept = context.rstrip()
            moved.append((kept, kept + context[len(kept) :] + continuation))
        unique = list(dict.fromkeys(text for pair in moved for text in pair))
        ids = dict(zip(unique, self.tokenizer.encode_batch(unique), strict=True))
        return [self._pair(ids[before], ids[whole]) for before, whole in moved]

    def _pair(self, before: list[int], whole: list[int]) -> Pair:
        before, whole = self._started(before), self._started(whole)
        most = min(len(before), len(whole))
        shared = most if before[:most] == whole[:most] else next(place for place in range(most) if before[place] != whole[place])
        if shared == 0 and whole[:1] == self.first and len(whole) > 1:  # an empty context, and the text begins a document by itself
            return Pair(whole[:1], whole, 1)
        if shared == 0:  # an empty context, or a token that spans all of it
            before, whole, shared = [*self.first, *before], [*self.first, *whole], len(self.first)
        if shared == len(whole):
            raise DataError("a continuation to be scored adds no token to its context; every choice needs at least one character")
        return Pair(before, whole, shared)

    def _started(self, ids: list[int]) -> list[int]:
        return list(ids) if not self.start or ids[: len(self.start)] == self.start else [*self.start, *ids]


def windows(ids: Sequence[int], first: Sequence[int], window: int, stride: int) -> Iterator[tuple[list[int], int]]:
    """(tokens, start) pieces that score every id exactly once: tokens[start:] given those before, at most `window` tokens as input.

    The first piece begins with `first` and scores `window` ids less the length of `first` plus one; each later one scores the next
    `stride` ids, with as many of those before them as fit. A stride of `window` is the disjoint form, in which a piece's first id has one
    id of context. ConfigError for a stride outside 1..window.
    """
    if not 1 <= stride <= window or window <= len(first):
        raise ConfigError(
            f"stride ({stride}) must be from 1 to the window ({window}), which must hold more than the {len(first)} first ids"
        )
    tokens = [*first, *ids]
    end = min(len(tokens), window + 1)
    if end > len(first):
        yield tokens[:end], len(first)
    while end < len(tokens):
        last = min(len(tokens), end + stride)
        begin = max(0, last - 1 - window)
        yield tokens[begin:last], end - begin
        end = last


def fitted(tokens: Sequence[int], start: int, window: int) -> tuple[list[tuple[list[int], int]], bool]:
    """Pieces that score tokens[start:] within `window` inputs, and whether any context was lost: cut on the left, or slid over."""
    if len(tokens) - 1 <= window:
        return [(list(tokens), start)], False
    if len(tokens) - start <= window:
        cut = len(tokens) - 1 - window
        return [(list(tokens[cut:]), start - cut)], True
    pieces = []
    for piece, at in windows(tokens[start:], tokens[max(0, start - window // 2) : start], window, max(1, window // 2)):
        pieces.append((piece, at))
    return pieces, True
