"""Last stage of a build: parts of all ranges become shards, rejected.jsonl and the index. Report section 4.1."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rorqual.data.config import BuildConfig
from rorqual.data.corpus import Range
from rorqual.data.shards import ShardWriter, atomic
from rorqual.data.stages import SKETCH, Job
from rorqual.errors import DataError
from rorqual.tokenizer.bpe import Tokenizer
from rorqual.tokenizer.plain import PlainEncoder

FORMAT: Final = 1
_BLOCK_DOCUMENTS: Final = 1 << 16
_BLOCK_TOKENS: Final = 1 << 22


class LineNumbers:
    """Lines of a file's earlier ranges, to number a range's lines from the file's start."""

    def __init__(self) -> None:
        self._lines: Counter[str] = Counter()

    def before(self, span: Range) -> int:
        return self._lines[span.files[0]] if span.kind in ("jsonl", "parquet") else 0

    def add(self, span: Range, lines: int) -> None:
        if span.kind in ("jsonl", "parquet"):
            self._lines[span.files[0]] += lines


@dataclass(frozen=True)
class SketchTable:
    """Shingle hashes of all held-out documents: `rows` (document number, hash), and the different `hashes`, ascending."""

    rows: NDArray[Any]
    hashes: NDArray[np.uint64]

    def near_duplicates(self, found: NDArray[np.bool_], share: float) -> NDArray[np.uint64]:
        """Numbers of documents of whose sketch at least `share`, and something, is among the `found` hashes; ascending."""
        numbers, position, size = np.unique(self.rows["number"], return_inverse=True, return_counts=True)
        seen = found[np.searchsorted(self.hashes, self.rows["hash"])]
        hits = np.bincount(position, weights=seen, minlength=len(numbers))
        return numbers[(hits > 0) & (hits >= share * size)]


def load_sketch(job: Job, ranges: int, bases: list[int], dropped: NDArray[np.uint8]) -> SketchTable:
    """Sketches of all ranges without those of duplicates, document numbers counted over the corpus."""
    parts = [np.zeros(0, dtype=SKETCH)]
    for number in range(ranges):
        rows = np.fromfile(job.path("scan", number, "sketch"), dtype=SKETCH)
        rows["number"] += np.uint64(bases[number])
        parts.append(rows[dropped[rows["number"].astype(np.int64)] == 0])
    table = np.concatenate(parts)
    return SketchTable(table, np.unique(table["hash"]))


def merge(
    job: Job,
    ranges: list[Range],
    scans: list[dict[str, Any]],
    encoded: list[dict[str, Any]],
    sketch: SketchTable,
    tokenizer: Tokenizer,
    config: BuildConfig,
) -> dict[str, Any]:
    """Write everything but index.json into the work folder's `final/`, afresh, and return the index."""
    final = Path(job.work) / "final"
    shutil.rmtree(final, ignore_errors=True)
    final.mkdir()
    found = np.zeros(len(sketch.hashes), dtype=bool)
    for number in range(len(ranges)):
        found[np.fromfile(job.path("encode", number, "hits"), dtype="<i8")] = True
    near = sketch.near_duplicates(found, config.near_duplicate)
    dtype = PlainEncoder.dtype_of(tokenizer)
    sources = {}
    for place, source in enumerate(dict.fromkeys(span.source for span in ranges)):
        numbers = [number for number, span in enumerate(ranges) if span.source == source]
        train = _train(job, numbers, final / source, dtype, config.shard_bytes)
        train["bytes"] = sum(encoded[number]["train_bytes"] for number in numbers)
        validation, removed = _validation(job, numbers, final / source, dtype, config.shard_bytes, near)
        counts = {"duplicates": sum(encoded[number]["duplicates"] for number in numbers), "near_duplicates": removed}
        counts |= {"documents_in": sum(scans[n]["documents"] for n in numbers), "bytes_in": sum(scans[n]["bytes"] for n in numbers)}
        sources[source] = {"id": place, "train": train, "validation": validation, **counts}
    if not sum(entry["train"]["documents"] for entry in sources.values()):
        raise DataError(
            f"no training document is left: {sum(scan['documents'] for scan in scans)} were read, the others are duplicates or held out; "
            "give more text, or a lower validation_rate"
        )
    rejected = _rejected(job, ranges, scans, final / "rejected.jsonl")
    tokenizer.save(final / "tokenizer")
    return {
        "format": FORMAT,
        "fingerprint": _fingerprint(sources, dtype, tokenizer.vocab_size),
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype.name,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "options": asdict(config),
        "sources": sources,
        "rejected": dict(sorted(rejected.items())),
        "duplicates": sum(entry["duplicates"] for entry in sources.values()),
        "near_duplicates": sum(entry["near_duplicates"] for entry in sources.values()),
        "documents_in": sum(scan["documents"] for scan in scans),
        "bytes_in": sum(scan["bytes"] for scan in scans),
    }


def _blocks(lengths: NDArray[np.int64]) -> Iterator[slice]:
    """Slices of documents with bounded tokens; a longer document is a block of its own."""
    start = 0
    while start < len(lengths):
        ends = np.cumsum(lengths[start : start + _BLOCK_DOCUMENTS])
        count = max(1, int(np.searchsorted(ends, _BLOCK_TOKENS, side="right")))
        yield slice(start, start + count)
        start += count


def _train(job: Job, numbers: list[int], folder: Path, dtype: np.dtype[Any], shard_bytes: int) -> dict[str, Any]:
    writer = ShardWriter(folder, "train", dtype, shard_bytes)
    for number in numbers:
        path = job.path("encode", number, "train_lengths")
        if not path.stat().st_size:
            continue
        lengths = np.memmap(path, dtype="<i8", mode="r")
        with open(job.path("encode", number, "train"), "rb") as file:
            for block in _blocks(lengths):
                part = np.array(lengths[block])
                writer.add(np.fromfile(file, dtype=dtype, count=int(part.sum())), part)
    return writer.summary()


def _validation(
    job: Job, numbers: list[int], folder: Path, dtype: np.dtype[Any], shard_bytes: int, near: NDArray[np.uint64]
) -> tuple[dict[str, Any], int]:
    folder.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(folder, "validation", dtype, shard_bytes)
    size = removed = 0
    with atomic(folder / "validation.txt") as text:
        for number in numbers:
            rows = np.fromfile(job.path("encode", number, "validation_documents"), dtype="<i8").reshape(-1, 3)
            with open(job.path("encode", number, "validation"), "rb") as tokens, open(job.path("encode", number, "text"), "rb") as texts:
                for (_, length, raw), gone in zip(rows.tolist(), np.isin(rows[:, 0], near.astype(np.int64)).tolist(), strict=True):
                    document, content = np.fromfile(tokens, dtype=dtype, count=length), texts.read(raw)
                    if gone:
                        removed += 1
                        continue
                    writer.add(document, np.array([length], dtype=np.int64))
                    text.write(content)
                    size += raw
    return writer.summary() | {"bytes": size, "text_file": "validation.txt"}, removed


def _rejected(job: Job, ranges: list[Range], scans: list[dict[str, Any]], path: Path) -> Counter[str]:
    lines = LineNumbers()
    reasons: Counter[str] = Counter()
    with atomic(path) as out:
        for number, (span, scan) in enumerate(zip(ranges, scans, strict=True)):
            with open(job.path("scan", number, "rejected"), "rb") as file:
                for line in file:
                    entry = json.loads(line)
                    entry["line"] += lines.before(span)
                    out.write(json.dumps(entry, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n")
            lines.add(span, scan["lines"])
            reasons.update(scan["rejected"])
    return reasons


def _fingerprint(sources: dict[str, Any], dtype: np.dtype[Any], vocab_size: int) -> str:
    parts = [
        [name, split, [shard["sha256"] for shard in entry[split]["shards"]]]
        for name, entry in sources.items()
        for split in ("train", "validation")
    ]
    return hashlib.sha256(json.dumps([parts, dtype.name, vocab_size]).encode()).hexdigest()
