"""What a data folder is built from and how it is read; both are plain data that a run stores.

Report section 4.1. `BuildConfig` decides everything that tokenising fixes for good (documents, tokens, validation split);
`DataConfig` decides what happens at load (mixture, FIM, order), so that a mixture changes without tokenising again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rorqual.errors import ConfigError


def _rate(name: str, value: float, below_one: bool = False) -> None:
    if not (0.0 <= value < 1.0 if below_one else 0.0 <= value <= 1.0):
        raise ConfigError(f"{name} ({value}) must be a share {'in [0, 1)' if below_one else 'in [0, 1]'}; use for example 0.1")


@dataclass(frozen=True)
class DataConfig:
    """How built shards become a stream of samples; a pure function of (seed, sample number). Report section 4.1.

    `sources` maps source name to sampling weight; empty means every source of the folder by its token count. `shuffle_rows` is the
    number of consecutive rows of a source that are put in random order (at most an epoch's; 1 keeps the order of the documents):
    neighbouring rows are mostly of one document, and a small batch of them teaches the weights what the context should tell.
    """

    sources: Mapping[str, float] = field(default_factory=dict)
    fim_rate: float = 0.1
    shuffle_rows: int = 1 << 16
    seed: int = 0

    def __post_init__(self) -> None:
        _rate("fim_rate", self.fim_rate)
        if type(self.shuffle_rows) is not int or self.shuffle_rows < 1:
            raise ConfigError(f"shuffle_rows ({self.shuffle_rows!r}) must be a whole number of at least 1 (1 keeps the order)")
        if self.seed < 0:
            raise ConfigError(f"seed ({self.seed}) must be 0 or larger")
        for name, weight in self.sources.items():
            if not 0.0 <= weight < float("inf"):
                raise ConfigError(f"weight of source {name!r} ({weight}) must be a finite number >= 0; leave a source out with 0")
        if self.sources and not sum(self.sources.values()) > 0.0:
            raise ConfigError(f"all source weights are zero ({dict(self.sources)}); give at least one source a positive weight")


@dataclass(frozen=True)
class BuildConfig:
    """What `data build` makes of its inputs. Every field changes the output; worker and chunk counts do not and are not here.

    `inputs` holds paths, globs or `name=path`; empty means the default corpus (the interpreter's standard library, and
    `arithmetic_documents` generated documents). `tokenizer` is a folder or a tokenizer.json; without one, a tokenizer of
    `vocab_size` ids (special tokens included) is trained on about `tokenizer_bytes` of training documents, spread over the corpus.
    `validation_rate` is the share of documents held out, lowered where that would pass about `validation_bytes` of text.
    `split_rate` is the share of punctuation-newline tokens that are split in training documents (the report gives no figure).
    `near_duplicate` is the share of a validation document's line shingles found in training documents from which it is removed.
    """

    inputs: tuple[str, ...] = ()
    tokenizer: str | None = None
    vocab_size: int = 4096
    tokenizer_bytes: int = 64 << 20
    text_field: str = "text"
    validation_rate: float = 0.02
    validation_bytes: int = 64 << 20
    near_duplicate: float = 0.5
    split_rate: float = 0.1
    arithmetic_documents: int = 20_000
    strict: bool = False
    seed: int = 0
    shard_bytes: int = 1 << 28

    def __post_init__(self) -> None:
        _rate("validation_rate", self.validation_rate, below_one=True)
        _rate("near_duplicate", self.near_duplicate)
        _rate("split_rate", self.split_rate)
        for name in ("vocab_size", "tokenizer_bytes", "validation_bytes", "shard_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} ({getattr(self, name)}) must be 1 or larger")
        if self.arithmetic_documents < 0 or self.seed < 0:
            raise ConfigError(
                f"arithmetic_documents ({self.arithmetic_documents}) and seed ({self.seed}) must be 0 or larger; 0 documents leaves arithmetic out"
            )
        if not self.text_field:
            raise ConfigError("text_field is empty; name the JSON or Parquet column that holds the text, for example 'text'")
