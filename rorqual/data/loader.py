"""Training samples as a pure function of (seed, sample number), from memory-mapped shards. Report section 4.1.

    sample g -> (source, row)            mixture.py, by weight
    row of a source                      in an order of its own within windows of `shuffle_rows` rows
    row j                                tokens j*seq_len .. (j+1)*seq_len of the source's stream: the last one is a target only
    the stream                           epoch after epoch; in each, all documents in an order of its own, each followed by EOS,
                                         a share of them rearranged for FIM (fim.py)

Nothing is drawn from a generator and no position is stored, so any rank can make any sample, a run resumes at any number of
ranks, and ranks cannot run out at different times: the stream wraps into the next epoch, whose number is counted (F28, F31).
There is no mask between documents (spec 12.8). An epoch's order takes 16 bytes per document while it is in use, a window's 8 bytes
per row.

Rows are shuffled because neighbours are mostly of one document: where a batch is smaller than a document, step after step of the
same text is learned by the weights, and attention never learns to look back.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rorqual.data import counters
from rorqual.data.config import DataConfig
from rorqual.data.fim import ADDED_TOKENS, Fim, FimTokens, parts
from rorqual.data.folder import BuiltFolder, TokenStore
from rorqual.data.mixture import Mixture
from rorqual.data.packing import spans
from rorqual.errors import ConfigError, DataError
from rorqual.tokenizer import bpe

_EPOCHS_KEPT = 2
_WINDOWS_KEPT = 2


class Piece(NamedTuple):
    """Part of a document in a row: its tokens start..stop-1, counted with FIM markers and EOS."""

    source: str
    epoch: int
    document: int
    start: int
    stop: int


@dataclass(frozen=True)
class SampleBatch:
    """Consecutive samples. Inputs are `tokens[:, :-1]`, targets `tokens[:, 1:]`."""

    tokens: NDArray[np.int64]
    documents: list[list[Piece]]
    """What the inputs of each sample consist of; over all rows of an epoch the pieces hold every token exactly once."""


@dataclass(frozen=True)
class ValidationSet:
    """Validation documents of a source, each followed by EOS, in corpus order; `num_bytes` is the length of `text`, their bytes."""

    source: str
    tokens: NDArray[np.int64]
    num_bytes: int
    text: bytes


class _Epoch(NamedTuple):
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    fim: Fim
    rearranged: NDArray[np.bool_]


class _Stream:
    """The endless stream of one source."""

    def __init__(self, source: str, store: TokenStore, config: DataConfig, eos_id: int, fim_tokens: FimTokens | None) -> None:
        self.source, self._store, self._seed, self._rate = source, store, config.seed, config.fim_rate
        self._eos = np.array([eos_id], dtype=np.int64)
        self._fim_tokens = fim_tokens
        self._begins = [0]  # where each epoch begins in the stream; grows as epochs are reached
        self._kept: dict[int, _Epoch] = {}
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._window = config.shuffle_rows

    def shuffled(self, row: int, seq_len: int) -> int:
        """The row that is read as the row-th: a bijection inside each window, which is never longer than the first epoch."""
        self.position(0)
        size = max(1, min(self._window, self._begins[1] // seq_len))
        window, inside = divmod(row, size)
        order = self._orders.pop(window, None)
        if order is None:
            order = counters.permutation(counters.key(self._seed, "rows", self.source, window), size)
            while len(self._orders) >= _WINDOWS_KEPT:
                del self._orders[next(iter(self._orders))]
        self._orders[window] = order
        return window * size + int(order[inside])

    def position(self, place: int) -> tuple[int, int]:
        """(epoch, place inside it) of a place in the stream."""
        while self._begins[-1] <= place:
            fim = Fim(self._seed, self.source, len(self._begins) - 1, self._rate)
            added = ADDED_TOKENS * int(fim.selected(self._store.lengths).sum())
            self._begins.append(self._begins[-1] + self._store.num_tokens + self._store.num_documents + added)
        epoch = bisect_right(self._begins, place) - 1
        return epoch, place - self._begins[epoch]

    def fraction(self, place: int) -> float:
        """Epochs passed at a place in the stream."""
        epoch, inside = self.position(place)
        return epoch + inside / (self._begins[epoch + 1] - self._begins[epoch])

    def _epoch(self, number: int) -> _Epoch:
        found = self._kept.pop(number, None)
        if found is None:
            order = counters.permutation(counters.key(self._seed, "order", self.source, number), self._store.num_documents)
            fim = Fim(self._seed, self.source, number, self._rate)
            rearranged = fim.selected(self._store.lengths)
            starts = np.zeros(len(order) + 1, dtype=np.int64)
            np.cumsum((self._store.lengths + 1 + ADDED_TOKENS * rearranged)[order], out=starts[1:])
            found = _Epoch(order, starts, fim, rearranged)
            while len(self._kept) >= _EPOCHS_KEPT:
                del self._kept[next(iter(self._kept))]
        self._kept[number] = found  # most recently used last
        return found

    def read(self, first: int, count: int, out: NDArray[np.int64]) -> list[Piece]:
        """Copies tokens first..first+count-1 of the stream to `out`; returns what they are parts of."""
        pieces, filled = [], 0
        while filled < count:
            number, inside = self.position(first + filled)
            epoch = self._epoch(number)
            stop = min(inside + count - filled, int(epoch.starts[-1]))
            for rank, start, end in spans(epoch.starts, inside, stop):
                document = int(epoch.order[rank])
                for part in self._document(epoch, document, start, end):
                    out[filled : filled + len(part)] = part
                    filled += len(part)
                pieces.append(Piece(self.source, number, document, start, end))
        return pieces

    def _document(self, epoch: _Epoch, document: int, start: int, stop: int) -> Iterator[NDArray[np.integer]]:
        """Tokens start..stop-1 of a document as it is streamed, part by part."""
        length = int(self._store.lengths[document])
        layout: list[int | tuple[int, int]] = [(0, length)]
        if self._fim_tokens is not None and epoch.rearranged[document]:
            layout = parts(length, epoch.fim.cuts(document, length), self._fim_tokens)
        at = 0
        for part in layout:
            low, high = (0, 1) if isinstance(part, int) else part
            begin, end = max(start - at, 0), min(stop - at, high - low)
            at += high - low
            if begin < end:
                yield np.array([part]) if isinstance(part, int) else self._store.read(document, low + begin, low + end)
        if start <= at < stop:
            yield self._eos


class PackedDataset:
    """A built data folder read as a mixture. Every method is a function of its arguments; what is kept only saves time.

    `vocab_size` is the model's, `tokenizer` the fingerprint that a checkpoint was trained with; both are optional refusals.
    Raises DataError for a folder that cannot be used, ConfigError for a configuration that does not fit it.
    """

    def __init__(
        self, folder: str | Path, config: DataConfig, seq_len: int, *, vocab_size: int | None = None, tokenizer: str | None = None
    ) -> None:
        if seq_len < 1:
            raise ConfigError(f"sequence_length ({seq_len}) must be at least 1")
        self._folder = BuiltFolder.open(folder)
        self.seq_len = seq_len
        self.tokenizer = bpe.load(self._folder.path / "tokenizer")
        self._check_tokenizer(vocab_size, tokenizer)
        weights = dict(config.sources) or {name: float(store.num_tokens) for name, store in self._folder.train.items()}
        self._check_sources(weights)
        self.mixture = Mixture(weights)
        fim_tokens = self._fim_tokens() if config.fim_rate else None
        self._streams = {
            name: _Stream(name, self._folder.train[name], config, self._folder.eos_id, fim_tokens) for name in self.mixture.sources
        }

    def _check_tokenizer(self, vocab_size: int | None, expected: str | None) -> None:
        built, path = self._folder, self._folder.path
        if self.tokenizer.fingerprint != built.tokenizer:
            raise DataError(
                f"{path / 'tokenizer'} has fingerprint {self.tokenizer.fingerprint}, but the shards were made with tokenizer "
                f"{built.tokenizer}; restore the tokenizer files or build the folder again"
            )
        if expected is not None and expected != built.tokenizer:
            raise DataError(
                f"{path} was built with tokenizer {built.tokenizer}, but this run uses tokenizer {expected}; the same ids would mean other "
                "text, so build the folder with the run's tokenizer"
            )
        if self.tokenizer.eos_id != built.eos_id:
            raise DataError(f"{path}: the index has eos_id {built.eos_id}, the tokenizer {self.tokenizer.eos_id}; build the folder again")
        if vocab_size is not None and built.vocab_size > vocab_size:
            raise DataError(
                f"{path} has token ids up to {built.vocab_size - 1}, but the model's vocab_size is {vocab_size}; "
                f"give the model at least {built.vocab_size} or build with a smaller vocabulary"
            )

    def _check_sources(self, weights: dict[str, float]) -> None:
        stores, path = self._folder.train, self._folder.path
        for name, weight in weights.items():
            if name not in stores:
                raise ConfigError(f"data.sources names {name!r}, which {path} does not have; its sources are {', '.join(sorted(stores))}")
            if weight > 0 and not stores[name].num_documents:
                raise DataError(f"source {name!r} of {path} has no training documents; set its weight to 0 or build it from more text")
        if not any(store.num_documents for store in stores.values()):
            raise DataError(f"{path} has no training documents at all; build it from a corpus that has some")

    def _fim_tokens(self) -> FimTokens:
        begin, hole, end = self.tokenizer.fim_begin_id, self.tokenizer.fim_hole_id, self.tokenizer.fim_end_id
        if begin is None or hole is None or end is None:
            raise ConfigError(
                f"data.fim_rate is above 0, but the tokenizer of {self._folder.path} has no fill-in-the-middle tokens; set data.fim_rate=0"
            )
        return FimTokens(begin, hole, end)

    @property
    def fingerprint(self) -> str:
        """Identity of the shards; with seed and configuration it fixes every sample."""
        return self._folder.fingerprint

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of all sources of the folder, whatever their weight."""
        return tuple(self._folder.train)

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._folder.vocab_size

    def sample(self, number: int, out: NDArray[np.int64]) -> list[Piece]:
        """Writes the seq_len + 1 tokens of one sample to `out`; returns the pieces that its inputs are made of."""
        source, row = self.mixture.place(number)
        stream = self._streams[source]
        pieces = stream.read(stream.shuffled(row, self.seq_len) * self.seq_len, self.seq_len + 1, out)
        last = pieces.pop()
        if last.stop - last.start > 1:
            pieces.append(last._replace(stop=last.stop - 1))
        return pieces

    def batch(self, first_sequence: int, count: int) -> SampleBatch:
        """Samples first_sequence to first_sequence + count - 1; rank r of a step takes `batch(first + r * k, k)`."""
        tokens = np.empty((count, self.seq_len + 1), dtype=np.int64)
        documents = [self.sample(first_sequence + i, tokens[i]) for i in range(count)]
        if count and int(tokens.max()) >= self.vocab_size:
            raise DataError(
                f"a sample of {self._folder.path} holds token id {int(tokens.max())}, but ids must be below {self.vocab_size}; build the folder again"
            )
        return SampleBatch(tokens, documents)

    def epochs(self, sequences: int) -> dict[str, float]:
        """How often each source has been read when `sequences` samples are done."""
        return {name: self._streams[name].fraction(rows * self.seq_len) for name, rows in self.mixture.rows(sequences).items()}

    def validation(self, source: str | None = None, max_tokens: int | None = None) -> ValidationSet:
        """Validation documents of a source, by default the one with the largest weight.

        With `max_tokens` only so many tokens of them: whole documents picked evenly across the set, those that no longer fit passed
        over, the shortest one if none fits.
        """
        name = self.mixture.sources[0] if source is None else source
        if name not in self._folder.validation:
            raise ConfigError(
                f"{name!r} is not a source of {self._folder.path}; its sources are {', '.join(sorted(self._folder.validation))}"
            )
        store = self._folder.validation[name]
        if not store.num_tokens:
            raise DataError(
                f"source {name!r} of {self._folder.path} has no validation text; build it with a larger validation_rate or measure another source"
            )
        try:
            text = self._folder.text_files[name].read_bytes()
        except OSError as error:
            raise DataError(f"the validation text of source {name!r} cannot be read: {error}; build the folder again") from None
        kept = list(range(store.num_documents)) if max_tokens is None else _spread([int(n) + 1 for n in store.lengths], max_tokens)
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        documents = [np.asarray(store.read(i, 0, int(store.lengths[i])), dtype=np.int64) for i in range(store.num_documents)]
        for token in np.unique(np.concatenate(documents)).tolist():
            sizes[token] = len(self.tokenizer.token_bytes(token))
        num_bytes = [int(sizes[document].sum()) for document in documents]
        if sum(num_bytes) != len(text):
            raise DataError(
                f"the validation text of source {name!r} has {len(text)} bytes, its tokens stand for {sum(num_bytes)}; build the folder again"
            )
        eos = np.array([self._folder.eos_id])
        tokens = np.concatenate([part for i in kept for part in (documents[i], eos)])
        ends = np.cumsum(num_bytes)
        text = b"".join(text[ends[i] - num_bytes[i] : ends[i]] for i in kept)
        return ValidationSet(name, tokens, len(text), text)


def _spread(lengths: list[int], most: int) -> list[int]:
    """Numbers of documents that fit into `most` tokens together, taken in a golden-ratio sequence so that they lie evenly; at least the shortest."""
    kept, total = [], 0
    for i in sorted(range(len(lengths)), key=lambda i: i * 0x9E3779B1 % 2**32):
        if total + lengths[i] <= most:
            kept.append(i)
            total += lengths[i]
    return sorted(kept) or [lengths.index(min(lengths))]
