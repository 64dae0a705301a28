"""From a corpus to token shards: deduplicated, split, tokenised, resumable. Report section 4.1.

    plan -> scan -> duplicates -> tokenizer -> encode -> merge

All work happens in `<out>.partial`; `<out>` appears by one rename when everything is in it, so a folder that exists is complete.
A build that was killed continues from the ranges it has finished, and its output is the same to the byte. The output is a function of the inputs
and BuildConfig: not of workers, ranges, time or place. What depends on the run (seconds, workers) is in build_log.json.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rorqual.data import corpus, merge, stages, stdlib
from rorqual.data.config import BuildConfig
from rorqual.data.corpus import File, Range
from rorqual.data.dedup import RunFile, Split, partitions
from rorqual.data.shards import atomic
from rorqual.errors import DataError, RunError, TokenizerError
from rorqual.tokenizer import bpe
from rorqual.tokenizer.bpe import Tokenizer

Progress = Callable[[str, int, int], None]
"""Called with stage, work done and work in all (bytes of text, or parts)."""

_FORMAT: Final = 1


@dataclass(frozen=True)
class _Plan:
    key: dict[str, Any]
    """What must be equal for a resumed build: options and inputs."""
    ranges: list[Range]
    default_corpus: dict[str, Any] | None
    validation_rate: float


def build(
    config: BuildConfig,
    out: str | Path,
    *,
    executor: Executor | None = None,
    workers: int | None = None,
    range_bytes: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build data folder `out` and return its index. `executor` replaces a pool of `workers` processes (default: one per core).

    Raises DataError or TokenizerError for inputs that cannot be used, before work starts where that can be known; RunError
    when `out` exists, is being built, or a partial build does not fit. What is finished is kept unless the inputs are to blame.
    """
    out = Path(out).absolute()
    if os.path.lexists(out):
        raise RunError(f"{out} exists; a data folder is never overwritten, so give another --out, or delete it")
    started = time.monotonic()
    files = corpus.find_files(config.inputs) if config.inputs else stdlib.find_files()
    tokenizer = bpe.load(config.tokenizer) if config.tokenizer is not None else None
    _check_tokenizer(config, tokenizer)
    plan = _plan(config, files, tokenizer, range_bytes)
    count = workers or _cores()
    work = out.with_name(out.name + ".partial")
    try:
        with _locked(work, plan) as plan, _pool(executor, count) as pool:
            builder = _Builder(config, plan, work, pool, 2 * count + 2, progress or (lambda stage, done, total: None))
            index = builder.run(tokenizer)
            final = work / "final"
            log = {"seconds": round(time.monotonic() - started, 3), "workers": count, "ranges": len(plan.ranges)}
            _write_json(final / "build_log.json", log)
            os.rename(final, out)
            _sync(out.parent)
    except OSError as error:
        raise DataError(
            f"building {out} stopped: {error.strerror or error} ({error.filename or work}); what is done is kept in {work}, "
            "so free space or repair the cause and run the same command again"
        ) from error
    except BrokenExecutor as error:
        raise DataError(
            f"a worker of the build died ({error}), most likely for lack of memory; run the same command again with fewer --workers"
        ) from error
    shutil.rmtree(work, ignore_errors=True)
    return index


def _check_tokenizer(config: BuildConfig, tokenizer: Tokenizer | None) -> None:
    if tokenizer is not None and tokenizer.eos_id is None:
        raise TokenizerError(
            f"{config.tokenizer} has no end-of-sequence token that ends a document; name eos_token in its tokenizer_config.json"
        )
    if tokenizer is None and config.vocab_size < bpe.SMALLEST_VOCABULARY:
        raise TokenizerError(
            f"vocab_size ({config.vocab_size}) must be {bpe.SMALLEST_VOCABULARY} or more to hold 256 bytes and the special tokens"
        )


def _plan(config: BuildConfig, files: list[File], tokenizer: Tokenizer | None, range_bytes: int | None) -> _Plan:
    total = corpus.estimated_bytes(files)
    size = range_bytes or corpus.range_bytes(total)
    if config.inputs:
        found, described = corpus.ranges(files, config.text_field, size), None
    else:
        found, described = stdlib.corpus_ranges(files, config.arithmetic_documents, size), stdlib.describe(files)
    key = {"options": asdict(config), "files": [[*asdict(file).values()] for file in files], "format": _FORMAT}
    key["tokenizer"] = tokenizer.fingerprint if tokenizer is not None else None
    rate = min(config.validation_rate, config.validation_bytes / max(corpus.text_bytes(found), 1))
    return _Plan(json.loads(json.dumps(key)), found, described, rate)


@contextmanager
def _locked(work: Path, plan: _Plan) -> Iterator[_Plan]:
    """The work folder, held against a second build; yields the plan to follow, an earlier one where a build is resumed."""
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{work} is being written by another build; wait for it, or give another --out") from None
        stored = work / "plan.json"
        if stored.exists():
            earlier = json.loads(stored.read_text())
            if earlier["key"] != plan.key:
                changed = [name for name in plan.key if earlier["key"].get(name) != plan.key[name]]
                old, new = earlier["key"].get("options", {}), plan.key["options"]
                changed += [f"{name} ({old.get(name)!r}, now {new[name]!r})" for name in new if old.get(name) != new[name]]
                raise RunError(
                    f"{work} holds an unfinished build of something else (changed: {', '.join(changed)}); "
                    "repeat its options to finish it, or delete the folder to start afresh"
                )
            spans = [Range(**(span | {"files": tuple(span["files"])})) for span in earlier["ranges"]]
            plan = _Plan(plan.key, spans, plan.default_corpus, plan.validation_rate)
        else:
            for stage in ("scan", "duplicates", "encode"):
                (work / stage).mkdir(exist_ok=True)
            _write_json(stored, {"key": plan.key, "ranges": [asdict(span) for span in plan.ranges]})
        yield plan


@contextmanager
def _pool(executor: Executor | None, workers: int) -> Iterator[Executor]:
    if executor is not None:
        yield executor
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Builder:
    def __init__(self, config: BuildConfig, plan: _Plan, work: Path, pool: Executor, window: int, progress: Progress) -> None:
        self._config = config
        self._plan = plan
        self._work = work
        self._pool = pool
        self._window = window
        self._progress = progress
        text = max(corpus.text_bytes(plan.ranges), 1)
        split = Split(config.seed, plan.validation_rate)
        sample = min(1.0, config.tokenizer_bytes / text) if config.tokenizer is None else 0.0
        self._job = stages.Job(str(work), config.text_field, split, config.strict, sample, config.split_rate)

    def run(self, tokenizer: Tokenizer | None) -> dict[str, Any]:
        """All stages in order, each resumed where it stopped; returns the content of index.json."""
        if not self._config.inputs:
            self._hold_out_docstrings()
        scans = self._scan()
        bases = [0, *np.cumsum([scan["documents"] for scan in scans]).tolist()]
        dropped = self._find_duplicates(scans, bases)
        sketch = merge.load_sketch(self._job, len(scans), bases, dropped)
        with atomic(self._work / "sketch.npy") as file:
            np.save(file, sketch.hashes)
        tokenizer = self._tokenizer(tokenizer, bases[:-1], dropped)
        del dropped
        tasks = ((self._job, number, span, bases[number]) for number, span in enumerate(self._plan.ranges))
        encoded = list(self._each("encode", stages.encode, tasks, [span.size for span in self._plan.ranges]))
        self._progress("merge", 0, 1)
        index = merge.merge(self._job, self._plan.ranges, scans, encoded, sketch, tokenizer, self._config)
        if self._plan.default_corpus is not None:
            index["default_corpus"] = self._plan.default_corpus
        index["options"]["effective_validation_rate"] = self._plan.validation_rate
        _write_json(self._work / "final" / "index.json", index)
        self._progress("merge", 1, 1)
        return index

    def _each(
        self, stage: str, function: Callable[..., dict[str, Any]], tasks: Iterable[tuple[Any, ...]], sizes: list[int]
    ) -> Iterator[dict[str, Any]]:
        """Results in order, with a bounded number of tasks under way."""
        waiting: deque[Future[dict[str, Any]]] = deque()
        remaining = iter(tasks)
        total, done = sum(sizes), 0
        self._progress(stage, 0, total)
        try:
            for size in sizes:
                while len(waiting) < self._window and (task := next(remaining, None)) is not None:
                    waiting.append(self._pool.submit(function, *task))
                yield waiting.popleft().result()
                done += size
                self._progress(stage, done, total)
        finally:
            for future in waiting:
                future.cancel()

    def _hold_out_docstrings(self) -> None:
        file = self._work / "held_out_docstrings.bin"
        if not file.exists():
            digests = stdlib.held_out_docstrings(stdlib.find_files(), self._job.split)
            with atomic(file) as opened:
                opened.write(b"".join(digests))

    def _scan(self) -> list[dict[str, Any]]:
        tasks = ((self._job, number, span) for number, span in enumerate(self._plan.ranges))
        scans: list[dict[str, Any]] = []
        lines = merge.LineNumbers()
        documents: Counter[str] = Counter()
        for span, scan in zip(
            self._plan.ranges, self._each("scan", stages.scan, tasks, [span.size for span in self._plan.ranges]), strict=True
        ):
            if scan["stopped"] is not None:
                at = scan["stopped"]
                shutil.rmtree(self._work)
                raise DataError(
                    f"{at['file']}:{lines.before(span) + at['line']}: {at['reason']}; strict mode stops at the first record that is rejected, "
                    "so repair the line, or leave strict mode out to have it counted and skipped"
                )
            lines.add(span, scan["lines"])
            documents[span.source] += scan["documents"]
            scans.append(scan)
        for source in dict.fromkeys(span.source for span in self._plan.ranges):
            if not documents[source]:
                reasons = Counter[str]()
                for span, scan in zip(self._plan.ranges, scans, strict=True):
                    reasons.update(scan["rejected"] if span.source == source else {})
                rejected = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "none"
                shutil.rmtree(self._work)
                raise DataError(
                    f"source {source!r} has zero documents (rejected: {rejected}); check its path, its format, "
                    f"and that its records have a text under {self._config.text_field!r}"
                )
        return scans

    def _find_duplicates(self, scans: list[dict[str, Any]], bases: list[int]) -> NDArray[np.uint8]:
        files = tuple(
            RunFile(str(self._job.path("scan", number, "runs")), tuple(scan["runs"]), bases[number]) for number, scan in enumerate(scans)
        )
        parts = partitions(bases[-1])
        tasks = ((self._job, number, files, low, high) for number, (low, high) in enumerate(parts))
        dropped = np.zeros(bases[-1], dtype=np.uint8)
        for number, _ in enumerate(self._each("duplicates", stages.find_duplicates, tasks, [1] * len(parts))):
            dropped[np.fromfile(self._job.path("duplicates", number, "numbers"), dtype="<i8")] = 1
        with atomic(self._work / "dropped.bin") as file:
            file.write(dropped.tobytes())
        return dropped

    def _tokenizer(self, given: Tokenizer | None, bases: list[int], dropped: NDArray[np.uint8]) -> Tokenizer:
        folder = self._work / "tokenizer"
        if (folder / "tokenizer_config.json").exists():
            return bpe.load(folder)
        self._progress("tokenizer", 0, 1)
        if given is not None:
            given.save(folder)
        else:
            texts = stages.sample_texts(self._job, bases, dropped, self._config.tokenizer_bytes)
            given = bpe.train(texts, self._config.vocab_size, folder)
        self._progress("tokenizer", 1, 1)
        return given


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_json(path: Path, value: Any) -> None:
    with atomic(path) as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
