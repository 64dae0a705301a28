"""Documents into rows of equal length: one unbroken stream for pre-training, isolated samples for fine-tuning.

Report sections 4.1 and 5.1. Pre-training cuts the stream of documents every `window` tokens, and a row may hold the end of one and the
beginning of another with nothing between them but the end-of-sentence token: no mask, every token has a target (spec 12.8).
Fine-tuning keeps samples apart: own segment id, own positions from 0, no target across a border, none in the padding (F29).
Trap avoided: restarting the positions alone isolates nothing, since attention still crosses; the segment ids must reach it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rorqual.errors import DataError

IGNORE = -100
"""Target of a position that is not trained on."""

PADDING_SEGMENT = -1


def spans(starts: NDArray[np.int64], first: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(document, from, to) for every document that the stream's tokens first..stop-1 touch, from and to counted inside it.

    `starts` holds where each document begins and, last, where the stream ends. Finding the first one is a binary search.
    """
    document = int(np.searchsorted(starts, first, side="right")) - 1
    while first < stop and document < len(starts) - 1:
        begin, end = int(starts[document]), min(int(starts[document + 1]), stop)
        if end > first:
            yield document, first - begin, end - begin
            first = end
        document += 1


def shifted(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(inputs, targets) of pre-training rows that carry one token more than they have inputs."""
    return rows[:, :-1], rows[:, 1:]


@dataclass(frozen=True)
class Sample:
    """One fine-tuning sample. `trained[i]` says whether token i is to be predicted, e.g. true on the assistant's part."""

    tokens: Sequence[int]
    trained: Sequence[bool] | None = None


@dataclass(frozen=True)
class PackedRows:
    """Isolated samples in rows; every array is [rows, window]. Padding has segment -1, position 0, target -100."""

    input_ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    positions: NDArray[np.int64]
    segment_ids: NDArray[np.int64]
    samples: list[list[int]]
    """Numbers of the samples in each row, in their order there; segment k of a row is samples[row][k]."""
    truncated: list[int]
    """Numbers of samples cut to the window."""
    dropped: dict[str, list[int]]
    """Numbers of samples left out, by reason: `too long`, `no target`."""

    @property
    def token_mask(self) -> NDArray[np.bool_]:
        """True on real tokens."""
        return np.not_equal(self.segment_ids, PADDING_SEGMENT)

    @property
    def num_targets(self) -> int:
        """Positions that are trained on."""
        return int((self.targets != IGNORE).sum())


def pack_isolated(samples: Sequence[Sample], window: int, pad_id: int, over_long: Literal["drop", "truncate"] = "drop") -> PackedRows:
    """Packs whole samples into rows of `window` tokens, first fit in the order given; never splits one over two rows.

    A sample longer than the window is dropped or cut, as asked, and counted either way. A sample that leaves no target (a
    single token, or nothing of it trained) is left out and counted: it would only dilute the step (F30).
    """
    if window < 2:
        raise DataError(f"window ({window}) must be at least 2 tokens: one to read and one to predict")
    kept: list[tuple[int, NDArray[np.int64], NDArray[np.int64]]] = []
    truncated: list[int] = []
    dropped: dict[str, list[int]] = {"too long": [], "no target": []}
    for number, sample in enumerate(samples):
        if sample.trained is not None and len(sample.trained) != len(sample.tokens):
            raise DataError(
                f"sample {number} has {len(sample.tokens)} tokens but {len(sample.trained)} training flags; give one flag per token"
            )
        if len(sample.tokens) > window and over_long == "drop":
            dropped["too long"].append(number)
            continue
        tokens, targets = _with_targets(sample, window)
        if not (targets != IGNORE).any():
            dropped["no target"].append(number)
            continue
        if len(sample.tokens) > window:
            truncated.append(number)
        kept.append((number, tokens, targets))
    rows = _first_fit([len(tokens) for _, tokens, _ in kept], window)
    shape = (len(rows), window)
    input_ids, positions = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    all_targets, segment_ids = np.full(shape, IGNORE, dtype=np.int64), np.full(shape, PADDING_SEGMENT, dtype=np.int64)
    for row, members in enumerate(rows):
        at = 0
        for segment, member in enumerate(members):
            _, tokens, targets = kept[member]
            here = slice(at, at + len(tokens))
            input_ids[row, here], all_targets[row, here] = tokens, targets
            positions[row, here], segment_ids[row, here] = np.arange(len(tokens)), segment
            at += len(tokens)
    numbers = [[kept[member][0] for member in members] for members in rows]
    return PackedRows(input_ids, all_targets, positions, segment_ids, numbers, truncated, dropped)


def _with_targets(sample: Sample, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of a sample and, at each, the next one if that is trained on."""
    tokens = np.asarray(sample.tokens[:window], dtype=np.int64)
    targets = np.full(len(tokens), IGNORE, dtype=np.int64)
    trained = np.ones(len(tokens), dtype=bool) if sample.trained is None else np.asarray(sample.trained[:window], dtype=bool)
    if len(tokens):
        targets[:-1] = np.where(trained[1:], tokens[1:], IGNORE)
    return tokens, targets


def _first_fit(lengths: Sequence[int], window: int) -> list[list[int]]:
    """Rows of item numbers; each item goes to the first row with room. A tree of free room makes it n log n."""
    size = 1
    while size < max(1, len(lengths)):
        size *= 2
    room = [window] * (2 * size)
    rows: list[list[int]] = []
    for item, length in enumerate(lengths):
        node = 1
        while node < size:
            node *= 2
            if room[node] < length:
                node += 1
        row = node - size
        if row == len(rows):
            rows.append([])
        rows[row].append(item)
        room[node] -= length
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return rows
