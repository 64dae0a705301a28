"""A build's output is a function of inputs and options: not of workers, ranges, or how often it was killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from rorqual.data.build import build
from rorqual.data.config import BuildConfig
from rorqual.data.dedup import Split
from tests.data.corpora import (
    awkward_lines,
    config,
    contents,
    documents,
    run,
    train_documents,
    validation_documents,
    write_awkward,
    write_jsonl,
)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_awkward(tmp_path / "in")


def test_every_document_is_in_one_split_once(corpus: Path, tmp_path: Path) -> None:
    _, reasons, right = awkward_lines(1400)
    index = run(config(corpus), tmp_path / "out")
    train, held = train_documents(tmp_path / "out"), validation_documents(tmp_path / "out")
    expected = right + documents(60)
    split = Split(0, 0.2)
    assert held == [text for text in expected if split.holds_out(split.digest(text.encode()))] and 5 <= len(held) <= 22
    assert train == [text for text in expected if text not in held], "in input order, first occurrence kept"
    entry = index["sources"]["text"]
    assert (tmp_path / "out/text/validation.txt").read_bytes() == "".join(held).encode()
    assert entry["validation"]["bytes"] == len("".join(held).encode()) and entry["train"]["bytes"] == len("".join(train).encode())
    assert (entry["train"]["documents"], entry["validation"]["documents"], entry["documents_in"]) == (len(train), len(held), 74)
    assert index["duplicates"] == entry["duplicates"] == 10
    assert index["rejected"] == dict(sorted({reason: 1 for reason in reasons.values()}.items()))
    lines = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert lines == [{"reason": reason, "file": str(corpus / "a.jsonl"), "line": line} for line, reason in reasons.items()]
    assert json.loads((tmp_path / "out/index.json").read_text()) == json.loads(json.dumps(index))
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("size", [250, 1000])
def test_ranges_of_any_size_give_the_same_bytes(corpus: Path, tmp_path: Path, size: int) -> None:
    run(config(corpus), tmp_path / "a")
    run(config(corpus), tmp_path / "b", range_bytes=size)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_one_and_four_workers_give_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    build(config(corpus), tmp_path / "one", workers=1)
    with ThreadPoolExecutor(4) as pool:
        build(config(corpus), tmp_path / "four", executor=pool, range_bytes=900)
    assert contents(tmp_path / "one") == contents(tmp_path / "four")


def test_compressed_input_has_the_same_tokens(corpus: Path, tmp_path: Path) -> None:
    import gzip

    import zstandard

    run(config(corpus), tmp_path / "a")
    (tmp_path / "packed").mkdir()
    for path, pack, suffix in ((corpus / "a.jsonl", gzip.compress, ".gz"), (corpus / "b.jsonl", zstandard.compress, ".zst"), (corpus / "c.jsonl", gzip.compress, ".gz")):  # fmt: skip
        (tmp_path / "packed" / f"{path.name}{suffix}").write_bytes(pack(path.read_bytes()))
    index = run(config(tmp_path / "packed"), tmp_path / "b")
    assert index["fingerprint"] == json.loads((tmp_path / "a/index.json").read_text())["fingerprint"]
    assert [json.loads(line)["line"] for line in (tmp_path / "b/rejected.jsonl").read_text().splitlines()] == [2, 3, 4, 5, 6, 8, 9, 10]


def test_the_fingerprint_follows_the_content(corpus: Path, tmp_path: Path) -> None:
    first = run(config(corpus), tmp_path / "a")["fingerprint"]
    assert run(config(corpus), tmp_path / "again")["fingerprint"] == first
    assert len(first) == 64
    others = [config(corpus, seed=1), config(corpus, split_rate=0.9), config(corpus, vocab_size=290), config(corpus, validation_rate=0.3)]
    assert len({first, *(run(other, tmp_path / str(number))["fingerprint"] for number, other in enumerate(others))}) == 5


def test_only_training_documents_have_split_newline_tokens(corpus: Path, tmp_path: Path) -> None:
    outs = {rate: tmp_path / str(rate) for rate in (0.0, 0.5, 1.0)}
    indexes = {rate: run(config(corpus, split_rate=rate, vocab_size=320), out) for rate, out in outs.items()}
    tokens = [index["sources"]["text"]["train"]["tokens"] for index in indexes.values()]
    assert tokens[0] < tokens[1] < tokens[2]
    assert len({(out / "text/validation-00000.bin").read_bytes() for out in outs.values()}) == 1
    assert train_documents(outs[0.0]) == train_documents(outs[0.5]) == train_documents(outs[1.0])


def test_near_duplicates_leave_validation_and_are_counted(tmp_path: Path) -> None:
    split = Split(0, 0.3)
    texts = documents(80)
    held = [text for text in texts if split.holds_out(split.digest(text.encode()))]
    copies = [text.replace("    ", "\t") + f"# copy {number}\n" for number, text in enumerate(held[:6])]
    kept = [text for text in copies if not split.holds_out(split.digest(text.encode()))]
    assert len(kept) >= 2
    path = write_jsonl(tmp_path / "a.jsonl", texts + kept)
    whole = run(config(path, validation_rate=0.3, near_duplicate=1.0, vocab_size=276), tmp_path / "whole")
    index = run(config(path, validation_rate=0.3, near_duplicate=0.8, vocab_size=276), tmp_path / "most")
    gone = [text for text in held if text not in validation_documents(tmp_path / "most")]
    expected = [text for number, text in enumerate(held[:6]) if copies[number] in kept]
    assert set(gone) >= set(expected) and index["near_duplicates"] == len(gone) >= whole["near_duplicates"]
    assert index["sources"]["text"]["near_duplicates"] == len(gone)
    assert train_documents(tmp_path / "most") == train_documents(tmp_path / "whole"), "training text stays"
    assert (tmp_path / "most/text/validation.txt").read_text() == "".join(text for text in held if text not in gone)


def test_validation_stays_under_its_bytes(tmp_path: Path) -> None:
    texts = documents(400)
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    index = run(config(path, validation_bytes=2000, vocab_size=276), tmp_path / "out")
    assert index["options"]["effective_validation_rate"] == pytest.approx(2000 / path.stat().st_size)
    assert 0 < index["sources"]["text"]["validation"]["bytes"] < 4000


def test_sources_and_small_shards(tmp_path: Path) -> None:
    code, web = write_jsonl(tmp_path / "a.jsonl", documents(30)), write_jsonl(tmp_path / "b.jsonl", documents(30, 1) + documents(5))
    index = run(config(f"code={code}", f"web={web}", shard_bytes=1000), tmp_path / "out")
    assert [(name, entry["id"], entry["duplicates"]) for name, entry in index["sources"].items()] == [("code", 0, 0), ("web", 1, 5)]
    shards_of = index["sources"]["code"]["train"]["shards"]
    assert len(shards_of) > 2 and all(shard["tokens"] <= 500 or shard["documents"] == 1 for shard in shards_of)
    assert train_documents(tmp_path / "out", "web") + validation_documents(tmp_path / "out", "web") != []
    assert sorted(train_documents(tmp_path / "out", "web") + validation_documents(tmp_path / "out", "web")) == sorted(documents(30, 1))


def test_a_tokenizer_that_is_given_is_used(corpus: Path, tmp_path: Path) -> None:
    first = run(config(corpus), tmp_path / "a")
    again = run(config(corpus, tokenizer=str(tmp_path / "a/tokenizer")), tmp_path / "b")
    assert (again["tokenizer"], again["fingerprint"]) == (first["tokenizer"], first["fingerprint"])
    assert again["dtype"] == "uint16" and again["eos_id"] == 1 and again["vocab_size"] == 300


def test_the_default_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library of forty files: held-out code has no docstring in training prose; arithmetic is generated."""
    from rorqual.data import stdlib

    library = tmp_path / "lib"
    library.mkdir()
    for number, text in enumerate(documents(40)):
        (library / f"m{number:02}.py").write_text(
            f'"""Shared words of pair {number // 2}."""\n{text}\n\ndef g():\n    """Own words of {number}."""\n'
        )
    (library / "notes.txt").write_text("Some notes.\n")
    monkeypatch.setattr(stdlib, "library", lambda: library)
    index = run(
        BuildConfig(vocab_size=300, validation_rate=0.3, near_duplicate=1.0, arithmetic_documents=20, split_rate=0.0), tmp_path / "out"
    )
    assert list(index["sources"]) == ["code", "prose", "arithmetic"]
    assert index["default_corpus"]["bytes"]["code"] == sum(path.stat().st_size for path in library.glob("*.py"))
    held = "".join(validation_documents(tmp_path / "out", "code"))
    train, prose = "".join(train_documents(tmp_path / "out", "code")), "".join(train_documents(tmp_path / "out", "prose"))
    for number in range(40):
        own, shared = f"Own words of {number}.", f"Shared words of pair {number // 2}."
        assert (own in prose) == (own in train) == (own not in held)
        assert (shared in prose) == (shared not in held)
    assert 4 <= len(validation_documents(tmp_path / "out", "code")) <= 20
    assert sum(index["sources"]["arithmetic"][split]["documents"] for split in ("train", "validation")) == 20


def _memory(process: psutil.Process) -> int:
    """Resident bytes of a process and all it started; those that have ended count nothing."""
    try:
        return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)])
    except psutil.NoSuchProcess:
        return 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("lines", "longest"), [(200_000, 1 << 20), (10, 30 << 20), (20_000_000, 1 << 20)])
def test_memory_does_not_depend_on_the_number_of_documents(tmp_path: Path, lines: int, longest: int) -> None:
    """Resident memory of all processes together stays under 1 GB plus four times the longest document."""
    path = tmp_path / "a.jsonl"
    with open(path, "w") as file:
        file.writelines(f'{{"text":"line {number * 2654435761 % (1 << 32):x} of many"}}\n' for number in range(lines))
        file.write(json.dumps({"text": "word " * (longest // 5)}) + "\n")
    command = [sys.executable, "-m", "rorqual", "data", "build", str(path), "--out", str(tmp_path / "out"), "--vocab-size", "512"]
    process = psutil.Popen([*command, "--tokenizer-bytes", "4000000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _memory(process))
        time.sleep(0.05)
    assert process.returncode == 0
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert index["documents_in"] == lines + 1 and index["duplicates"] == 0
    print(f"{lines} lines: {peak / 2**20:.0f} MiB")
    assert 50 << 20 < peak < 1_000_000_000 + 4 * longest, f"{peak / 2**20:.0f} MiB"
