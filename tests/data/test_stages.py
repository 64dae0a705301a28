"""Stages are pure functions of a range, done once, and hold no more than a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rorqual.data import corpus, stages
from rorqual.data.dedup import Split
from rorqual.data.stages import Job
from tests.data.corpora import documents, write_jsonl
from tests.tokenizer.samples import tokenizer


def _job(folder: Path, rate: float = 0.3, sample: float = 0.0) -> Job:
    for stage in ("scan", "duplicates", "encode"):
        (folder / stage).mkdir(parents=True)
    tokenizer().save(folder / "tokenizer")
    np.save(folder / "sketch.npy", np.zeros(0, np.uint64))
    return Job(str(folder), "text", Split(0, rate), False, sample, 0.5)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def span(tmp_path: Path) -> corpus.Range:
    path = write_jsonl(tmp_path / "a.jsonl", [*documents(40), ""])
    return corpus.ranges(corpus.find_files([str(path)]), "text", 1 << 20)[0]


def test_a_scan_by_hand(tmp_path: Path, span: corpus.Range) -> None:
    job = _job(tmp_path / "w", sample=1.0)
    held = [number for number, text in enumerate(documents(40)) if job.split.holds_out(job.split.digest(text.encode()))]
    result = stages.scan(job, 7, span)
    assert result == {
        "documents": 40,
        "lines": 41,
        "bytes": len("".join(documents(40))),
        "rejected": {"empty_text": 1},
        "runs": [40],
        "stopped": None,
    }
    sample = [json.loads(line) for line in job.path("scan", 7, "sample").read_bytes().splitlines()]
    assert sample == [[number, text] for number, text in enumerate(documents(40)) if number not in held]
    rows = np.fromfile(job.path("scan", 7, "sketch"), dtype=stages.SKETCH)
    assert sorted(set(rows["number"].tolist())) == held != []
    assert job.path("scan", 7, "runs").stat().st_size == 40 * 24


def test_work_that_is_done_is_not_done_again(tmp_path: Path, span: corpus.Range, monkeypatch: pytest.MonkeyPatch) -> None:
    job = _job(tmp_path / "w")
    (tmp_path / "w/dropped.bin").write_bytes(bytes(40))
    done = stages.scan(job, 0, span), stages.find_duplicates(job, 0, (), 0, 2**64), stages.encode(job, 0, span, 0)

    def never(*args: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(stages, "read", never)
    monkeypatch.setattr(stages, "duplicates", never)
    assert done == (stages.scan(job, 0, span), stages.find_duplicates(job, 0, (), 0, 2**64), stages.encode(job, 0, span, 0))


@pytest.mark.parametrize(("size", "count"), [(1, 1 << 13), (700, 1 << 13), (1 << 19, 3)])
def test_batches_do_not_change_tokens(tmp_path: Path, span: corpus.Range, monkeypatch: pytest.MonkeyPatch, size: int, count: int) -> None:
    found = []
    for name in ("a", "b"):
        job = _job(tmp_path / name)
        (tmp_path / name / "dropped.bin").write_bytes(bytes(12) + b"\1" + bytes(30))
        found.append((stages.encode(job, 0, span, 2), _files(tmp_path / name / "encode")))
        monkeypatch.setattr(stages, "_BATCH_BYTES", size)
        monkeypatch.setattr(stages, "_BATCH_DOCUMENTS", count)
    assert found[0] == found[1]
    assert found[0][0]["duplicates"] == 1, "document 10 of the range is number 12 of the corpus"


def test_documents_of_an_encoded_range(tmp_path: Path, span: corpus.Range) -> None:
    job = _job(tmp_path / "w")
    (tmp_path / "w/dropped.bin").write_bytes(bytes(45))
    counts = stages.encode(job, 0, span, 5)
    held = [text for text in documents(40) if job.split.holds_out(job.split.digest(text.encode()))]
    train = [text for text in documents(40) if text not in held]
    tokens = np.fromfile(job.path("encode", 0, "train"), dtype="<u2").tolist()
    lengths = np.fromfile(job.path("encode", 0, "train_lengths"), dtype="<i8").tolist()
    assert (len(lengths), sum(lengths)) == (counts["train_documents"], counts["train_tokens"]) == (len(train), len(tokens))
    assert tokenizer().decode(tokens) == "".join(train) and counts["train_bytes"] == len("".join(train))
    rows = np.fromfile(job.path("encode", 0, "validation_documents"), dtype="<i8").reshape(-1, 3)
    expected = [[5 + documents(40).index(text), len(tokenizer().encode(text)), len(text)] for text in held]
    assert rows.tolist() == expected and job.path("encode", 0, "text").read_text() == "".join(held)


def test_the_tokenizer_sample_leaves_duplicates_out_and_stops(tmp_path: Path) -> None:
    job = _job(tmp_path / "w", rate=0.0, sample=1.0)
    for number, texts in enumerate((["abc", "def"], ["ghi", "jkl"])):
        path = write_jsonl(tmp_path / f"{number}.jsonl", texts)
        stages.scan(job, number, corpus.ranges(corpus.find_files([str(path)]), "text", 1 << 20)[0])
    dropped = np.array([0, 1, 0, 0], dtype=np.uint8)
    assert list(stages.sample_texts(job, [0, 2], dropped, 100)) == ["abc", "ghi", "jkl"]
    assert list(stages.sample_texts(job, [0, 2], dropped, 5)) == ["abc", "gh"]
