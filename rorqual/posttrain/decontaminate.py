"""Keeps evaluation out of training data: no sample shares a run of ten words with an evaluation file.

    known = EvaluationText.read(["shared/data/gsm8k", "mine.jsonl"])
    known.found("Natalia sold clips to ...")                             # the shared run of words, "" where there is none

The rule is DeepSeekMath's (section 2.1; DeepSeek-R1 appendix D.1): a 10-gram of words that equals one of a benchmark; benchmark texts of 3
to 9 words are compared whole. Words are case folded and without punctuation. What stands in over a tenth of the texts of a file with at
least 20 of them is the wording of its prompts, not content, and does not count (ours): else one instruction would throw everything out.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rorqual.errors import DataError
from rorqual.posttrain.filters import GRAM, grams, words

SHORTEST = 3
_COMMON, _ENOUGH = 0.1, 20
_KINDS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".md")


@dataclass
class EvaluationText:
    """Hashes of the 10-grams of evaluation files, and of their short texts whole; `files` says what was read, for a manifest."""

    files: list[dict[str, Any]] = field(default_factory=list)
    _grams: set[bytes] = field(default_factory=set, repr=False)
    _short: set[bytes] = field(default_factory=set, repr=False)

    @classmethod
    def read(cls, paths: Sequence[str | Path]) -> EvaluationText:
        """Reads files, or folders with all files below them of a known kind; DataError for one that cannot be read or holds no text."""
        made = cls()
        for path in map(Path, paths):
            for file in _files(path):
                made._add(file)
        return made

    def _add(self, file: Path) -> None:
        try:
            raw = file.read_bytes()
            texts = [words(text) for text in dict.fromkeys(_texts(file.suffix.lower(), raw.decode("utf-8-sig")))]
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror or error}") from error
        except (ValueError, RecursionError, csv.Error) as error:
            raise DataError(f"{file} cannot be read as {file.suffix} in UTF-8 ({error}); give text, JSON lines, JSON or CSV") from error
        counts: Counter[bytes] = Counter()
        for tokens in texts:
            counts.update({_hash(gram) for gram in grams(tokens)})
        most = _COMMON * len(texts) if len(texts) >= _ENOUGH else len(texts)
        used = {gram for gram, count in counts.items() if count <= most}
        short = {_hash(" ".join(tokens)) for tokens in texts if SHORTEST <= len(tokens) < GRAM}
        self._grams |= used
        self._short |= short
        self.files.append({
            "path": str(file), "sha256": hashlib.sha256(raw).hexdigest(), "texts": len(texts), "grams": len(used), "short_texts": len(short),
            "common_grams_ignored": len(counts) - len(used),
        })  # fmt: skip

    def found(self, text: str) -> str:
        """The first 10 words in a row that an evaluation file has too, or the whole text where a short one equals it; else ""."""
        tokens = words(text)
        for gram in grams(tokens):
            if _hash(gram) in self._grams:
                return gram
        whole = " ".join(tokens)
        return whole if SHORTEST <= len(tokens) < GRAM and _hash(whole) in self._short else ""


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} is neither a file nor a folder; name evaluation files to keep out of the data")
    found = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in _KINDS)
    if not found:
        raise DataError(f"{path} has no file that ends in {', '.join(_KINDS)}; name evaluation files to keep out of the data")
    return found


def _texts(kind: str, text: str) -> Iterator[str]:
    """Every text of a file: strings of JSON at any depth, cells of a table, paragraphs of plain text."""
    if kind == ".json":
        try:
            yield from _strings(json.loads(text))
            return
        except json.JSONDecodeError:
            kind = ".jsonl"  # as some benchmarks name their lines
    if kind == ".jsonl":
        for line in text.split("\n"):
            if line.strip():
                yield from _strings(json.loads(line))
    elif kind in (".csv", ".tsv"):
        for row in csv.reader(io.StringIO(text), delimiter="\t" if kind == ".tsv" else ","):
            yield from row
    else:
        yield from text.split("\n\n")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
