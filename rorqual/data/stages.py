"""The stages of a build that run on an executor: pure functions of a file range, whose outputs are files in the work folder.

    scan        range -> hashes of its documents (sorted runs), rejected records, sketches of held-out documents, tokenizer sample
    duplicates  interval of hashes -> numbers of the documents that occurred before
    encode      range -> tokens of its documents, training and validation apart, and which sketch hashes its training text has

Each writes a JSON file last; where that exists the work is done, which is all there is to resuming. Nothing depends on the clock, on the worker or
on what ran before. Memory holds one document and a batch of bounded size.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rorqual.data.corpus import Range
from rorqual.data.dedup import RunFile, RunWriter, Split, duplicates
from rorqual.data.newlines import NewlineSplitter
from rorqual.data.overlap import Finder, sketch
from rorqual.data.records import Record, read
from rorqual.data.shards import atomic
from rorqual.tokenizer import bpe
from rorqual.tokenizer.plain import PlainEncoder

_BATCH_BYTES: Final = 1 << 19
_BATCH_DOCUMENTS: Final = 1 << 13
_SAMPLE_CHARACTERS: Final = 1 << 20
SKETCH: Final = np.dtype([("number", "<u8"), ("hash", "<u8")])


@dataclass(frozen=True)
class Job:
    """What every task of a build shares."""

    work: str
    text_field: str
    split: Split
    strict: bool
    sample_rate: float
    split_rate: float

    def path(self, stage: str, number: int, suffix: str) -> Path:
        return Path(self.work) / stage / f"{number:06d}.{suffix}"

    def held_out(self) -> frozenset[bytes]:
        """Digests of docstrings that training prose must not have (default corpus only)."""
        file = Path(self.work) / "held_out_docstrings.bin"
        data = file.read_bytes() if file.exists() else b""
        return frozenset(data[start : start + 16] for start in range(0, len(data), 16))

    def is_held_out(self, record: Record, digest: bytes) -> bool:
        """Whether a document is for validation, by its own digest or its owner's."""
        return self.split.holds_out(digest if record.owner is None else record.owner)


def scan(job: Job, number: int, span: Range) -> dict[str, Any]:
    """First pass over a range. Returns counts; in strict mode it stops at the first rejected record and names it."""
    done = job.path("scan", number, "json")
    if done.exists():
        return dict(json.loads(done.read_text()))
    reasons: Counter[str] = Counter()
    documents = lines = size = 0
    stopped: dict[str, Any] | None = None
    with ExitStack() as stack:
        runs_file, rejected, sketches, sample = (
            stack.enter_context(atomic(job.path("scan", number, suffix))) for suffix in ("runs", "rejected", "sketch", "sample")
        )
        kept = stack.enter_context(atomic(job.path("scan", number, "kept"))) if span.kind == "docstrings" else None
        runs = RunWriter(runs_file)
        for record in read(span, job.text_field, job.split, job.held_out()):
            lines += 1
            if record.reason is not None:
                reasons[record.reason] += 1
                entry = {"reason": record.reason, "file": record.file, "line": record.line}
                rejected.write(json.dumps(entry).encode() + b"\n")
                if job.strict:
                    stopped = entry
                    break
                continue
            digest = job.split.digest(record.raw)
            runs.add(digest)
            if job.is_held_out(record, digest):
                hashes = sketch(record.raw)
                rows = np.empty(len(hashes), dtype=SKETCH)
                rows["number"], rows["hash"] = documents, hashes
                sketches.write(rows.tobytes())
            elif int.from_bytes(digest[:8], "little") < job.sample_rate * 2.0**64:
                sample.write(json.dumps([documents, record.text[:_SAMPLE_CHARACTERS]]).encode() + b"\n")
            if kept is not None and record.owner is not None:
                kept.write(json.dumps([record.file, record.line, record.text, record.owner.hex()]).encode() + b"\n")
            documents += 1
            size += len(record.raw)
        runs.flush()
    result = {"documents": documents, "lines": lines, "bytes": size, "rejected": dict(reasons), "runs": runs.runs, "stopped": stopped}
    _finish(done, result)
    return result


def find_duplicates(job: Job, number: int, files: tuple[RunFile, ...], low: int, high: int) -> dict[str, Any]:
    """Duplicates of one interval of hashes."""
    done = job.path("duplicates", number, "json")
    if done.exists():
        return dict(json.loads(done.read_text()))
    found = duplicates(files, low, high)
    with atomic(job.path("duplicates", number, "numbers")) as file:
        file.write(found.astype("<i8").tobytes())
    result = {"duplicates": len(found)}
    _finish(done, result)
    return result


def _kept(job: Job, number: int) -> Iterator[Record]:
    """Documents of a docstring range as the scan found them: parsing source costs far more than all the rest."""
    with open(job.path("scan", number, "kept"), "rb") as file:
        for line in file:
            path, place, text, owner = json.loads(line)
            yield Record(path, place, text, text.encode(), None, bytes.fromhex(owner))


@lru_cache(maxsize=1)
def _encoder(folder: str, split_rate: float, seed: int) -> tuple[PlainEncoder, NewlineSplitter]:
    tokenizer = bpe.load(folder)
    encoder = PlainEncoder(tokenizer)
    return encoder, NewlineSplitter(tokenizer, encoder, split_rate, seed)


def encode(job: Job, number: int, span: Range, base: int) -> dict[str, Any]:
    """Second pass over a range, whose first document has number `base`."""
    done = job.path("encode", number, "json")
    if done.exists():
        return dict(json.loads(done.read_text()))
    encoder, splitter = _encoder(str(Path(job.work) / "tokenizer"), job.split_rate, job.split.seed)
    finder = Finder(np.load(Path(job.work) / "sketch.npy", mmap_mode="r"))
    drop = Path(job.work) / "dropped.bin"
    counts: Counter[str] = Counter({"duplicates": 0, "train_documents": 0, "train_bytes": 0, "train_tokens": 0})
    suffixes = ("train", "train_lengths", "validation", "validation_documents", "text", "hits")
    with ExitStack() as stack:
        files = {suffix: stack.enter_context(atomic(job.path("encode", number, suffix))) for suffix in suffixes}
        drops = stack.enter_context(open(drop, "rb"))
        drops.seek(base)
        batch: list[tuple[bytes, bytes, bytes]] = []
        pending = documents = 0

        def flush() -> None:
            if not batch:
                return
            parts = [part for part, _, _ in batch]
            lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts)) // encoder.dtype.itemsize
            tokens = np.frombuffer(b"".join(parts), dtype=encoder.dtype)
            hashes = np.frombuffer(b"".join(digest[:8] for _, digest, _ in batch), dtype="<u8")
            finder.search(b"\xff".join(raw for _, _, raw in batch))  # a byte that no text has, so that no shingle spans two documents
            tokens, lengths = splitter(tokens, lengths, hashes)
            files["train"].write(tokens.tobytes())
            files["train_lengths"].write(lengths.astype("<i8").tobytes())
            counts.update(train_documents=len(lengths), train_tokens=len(tokens))
            batch.clear()

        for record in _kept(job, number) if span.kind == "docstrings" else read(span, job.text_field, job.split):
            if record.reason is not None:
                continue
            ordinal, documents = base + documents, documents + 1
            if drops.read(1) != b"\0":
                counts["duplicates"] += 1
                continue
            digest = job.split.digest(record.raw)
            packed = encoder.encode(record.text)
            if job.is_held_out(record, digest):
                files["validation"].write(packed)
                files["text"].write(record.raw)
                row = np.array([ordinal, len(packed) // encoder.dtype.itemsize, len(record.raw)], dtype="<i8")
                files["validation_documents"].write(row.tobytes())
                continue
            batch.append((packed, digest, record.raw))
            counts["train_bytes"] += len(record.raw)
            pending += len(record.raw)
            if pending >= _BATCH_BYTES or len(batch) >= _BATCH_DOCUMENTS:
                flush()
                pending = 0
        flush()
        files["hits"].write(np.flatnonzero(finder.found).astype("<i8").tobytes())
    _finish(done, dict(counts))
    return dict(counts)


def sample_texts(job: Job, bases: list[int], dropped: NDArray[np.uint8], limit: int) -> Iterator[str]:
    """Texts of the tokenizer sample in corpus order, duplicates left out, up to `limit` characters."""

    left = limit
    for number, base in enumerate(bases):
        with open(job.path("scan", number, "sample"), "rb") as file:
            for line in file:
                local, text = json.loads(line)
                if not dropped[base + local]:
                    yield text[:left]
                    left -= len(text)
                if left <= 0:
                    return


def _finish(path: Path, result: dict[str, Any]) -> None:
    with atomic(path) as file:
        file.write(json.dumps(result).encode())
