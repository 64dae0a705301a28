"""A build that is killed, refused or out of space loses nothing, and continues to the same bytes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from rorqual.data import shards, stages
from rorqual.data.dedup import Split
from rorqual.errors import DataError, RunError, TokenizerError
from tests.data.corpora import awkward_lines, config, contents, documents, run, train_documents, write_awkward, write_jsonl
from tests.tokenizer.samples import tokenizer


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_awkward(tmp_path / "in")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A corpus that tests only read, and what an undisturbed build makes of it."""
    folder = tmp_path_factory.mktemp("whole")
    corpus = write_awkward(folder / "in")
    run(config(corpus), folder / "out")
    return corpus, contents(folder / "out")


KILLED = """
import os, sys
from rorqual.data import stages
from rorqual.data.build import build
from tests.data.corpora import Inline, config
left = int(sys.argv[3])
real = stages._finish
def finish(path, result):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), 9)
    real(path, result)
stages._finish = finish
build(config(sys.argv[1]), sys.argv[2], executor=Inline(), range_bytes=900)
"""


def test_a_killed_build_continues_to_the_same_bytes(whole: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    """Killed in the scan, then in the encoding, then finished: what was done is not done again."""
    corpus, expected = whole
    out = tmp_path / "out"
    ranges = None
    for left in (3, 12):
        killed = subprocess.run([sys.executable, "-c", KILLED, str(corpus), str(out), str(left)], cwd=Path(__file__).parents[2], timeout=60)
        assert killed.returncode == -signal.SIGKILL and not out.exists()
        ranges = json.loads((tmp_path / "out.partial/plan.json").read_text())["ranges"]
    assert len(list((tmp_path / "out.partial/scan").glob("*.json"))) == len(ranges or []) > 4
    assert list((tmp_path / "out.partial/encode").glob("*.json"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.partial/scan").glob("*.json")}
    seen: list[str] = []

    def progress(stage: str, done: int, total: int) -> None:
        seen.append(stage)
        assert all(path.stat().st_mtime_ns == time_ for path, time_ in before.items())

    run(config(corpus), out, progress=progress)  # other ranges asked for: the stored plan is followed
    assert contents(out) == expected
    assert list(dict.fromkeys(seen)) == ["scan", "duplicates", "encode", "merge"], "the tokenizer was kept"
    assert json.loads((out / "build_log.json").read_text())["ranges"] == len(ranges or [])


def test_a_partial_build_of_something_else_is_left_alone(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stop_at(monkeypatch, "encode")
    with pytest.raises(KeyboardInterrupt):
        run(config(corpus), tmp_path / "out")
    monkeypatch.undo()
    with pytest.raises(RunError, match=r"unfinished build of something else \(changed: options, seed \(0, now 7\)\); repeat its options"):
        run(config(corpus, seed=7), tmp_path / "out")
    os.utime(corpus / "a.jsonl", ns=(1, 1))
    with pytest.raises(RunError, match=r"\(changed: files\)"):
        run(config(corpus), tmp_path / "out")


def _stop_at(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, stage, stop)


def test_a_folder_that_exists_is_never_touched(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match="out exists; a data folder is never overwritten"):
        run(config(corpus), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir()) and not (tmp_path / "out.partial").exists()


def test_two_builds_of_one_folder(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = stages.scan

    def scan(*args: Any) -> dict[str, Any]:
        with pytest.raises(RunError, match="is being written by another build"):
            run(config(corpus), tmp_path / "out")
        return real(*args)

    monkeypatch.setattr(stages, "scan", scan)
    run(config(corpus), tmp_path / "out")


def test_zero_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\n{"body": "x"}\n{"body": "y"}\n')
    with pytest.raises(DataError, match=r"source 'text' has zero documents \(rejected: 1 blank_line, 2 missing_text\); .* under 'text'"):
        run(config(tmp_path / "a.jsonl"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]
    (tmp_path / "b.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=r"zero documents \(rejected: none\)"):
        run(config(tmp_path / "b.jsonl"), tmp_path / "out")
    index = run(config(tmp_path / "a.jsonl", text_field="body", validation_rate=0.0), tmp_path / "out")
    assert index["rejected"] == {"blank_line": 1} and train_documents(tmp_path / "out") == ["x", "y"]


def test_a_source_without_documents_beside_one_that_has(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"source 'web' has zero documents \(rejected: 1 empty_text\)"):
        run(config(corpus, f"web={tmp_path}/empty.txt"), tmp_path / "out")


def test_strict_mode_names_the_first_line(corpus: Path, tmp_path: Path) -> None:
    for size in (None, 30, 60):
        with pytest.raises(DataError, match=r"a.jsonl:2: blank_line; strict mode stops at the first"):
            run(config(corpus, strict=True), tmp_path / "out", range_bytes=size)
    lines, _, _ = awkward_lines(1400)
    (corpus / "a.jsonl").write_bytes(lines[0] + lines[6] + lines[8] + lines[1])
    with pytest.raises(DataError, match=r"a.jsonl:3: not_an_object"):
        run(config(corpus, strict=True), tmp_path / "out", range_bytes=20)
    assert not (tmp_path / "out.partial").exists()


def test_everything_held_out_or_the_same(tmp_path: Path) -> None:
    split = Split(0, 0.5)
    held = [text for text in documents(20) if split.holds_out(split.digest(text.encode()))]
    path = write_jsonl(tmp_path / "a.jsonl", held * 2)
    with pytest.raises(DataError, match=f"no training document is left: {2 * len(held)} were read"):
        run(config(path, validation_rate=0.5), tmp_path / "out")


def test_unreadable_input(corpus: Path, tmp_path: Path) -> None:
    (corpus / "d.jsonl.gz").write_bytes(b"\x1f\x8b\x08 cut")
    with pytest.raises(DataError, match="cannot read .*d.jsonl.gz: .*damaged or unreadable"):
        run(config(corpus), tmp_path / "out")
    with pytest.raises(DataError, match="gone does not exist"):
        run(config(tmp_path / "gone"), tmp_path / "out2")
    assert not (tmp_path / "out2.partial").exists()


@pytest.mark.parametrize("suffix", ["scan/000001.runs", "tokenizer/", "encode/000001.train", "dropped.bin", "final/index.json"])
def test_a_full_disk_is_an_error_and_the_build_continues(
    whole: tuple[Path, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    corpus, expected = whole
    real = os.replace

    def full(source: Path, target: Path) -> None:
        if suffix in f"{target}":
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(source, target)

    with (
        monkeypatch.context() as patch,
        pytest.raises(DataError, match="stopped: No space left on device .*; what is done is kept in .*out.partial, so free space"),
    ):
        patch.setattr(os, "replace", full)
        run(config(corpus), tmp_path / "out", range_bytes=900)
    assert not (tmp_path / "out").exists()
    assert not [path for path in (tmp_path / "out.partial").rglob(".*") if path.is_file()], "no temporary file is left"
    run(config(corpus), tmp_path / "out")
    assert contents(tmp_path / "out") == expected


def test_a_disk_that_fills_while_a_shard_is_written(
    whole: tuple[Path, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, expected = whole

    def full(self: shards.ShardWriter, tokens: Any, lengths: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(DataError, match="No space left on device .*out.partial"):
        patch.setattr(shards.ShardWriter, "_write", full)
        run(config(corpus), tmp_path / "out")
    run(config(corpus), tmp_path / "out")
    assert contents(tmp_path / "out") == expected


def test_a_worker_that_dies(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*args: Any) -> None:
        raise BrokenProcessPool("a process terminated abruptly")

    with monkeypatch.context() as patch, pytest.raises(DataError, match="a worker of the build died .*fewer --workers"):
        patch.setattr(stages, "encode", die)
        run(config(corpus), tmp_path / "out")
    assert run(config(corpus), tmp_path / "out")["documents_in"] == 74


@pytest.mark.parametrize("change", [{"vocab_size": 275}, {"tokenizer": "nowhere"}])
def test_tokenizers_are_refused_before_work(corpus: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match=r"vocab_size \(275\) must be 276 or more|cannot read the tokenizer nowhere"):
        run(config(corpus, **change), tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_a_tokenizer_without_an_end_token(corpus: Path, tmp_path: Path) -> None:
    content = tokenizer().content()
    content["added_tokens"][1]["content"] = "</s>"
    content["model"]["vocab"]["</s>"] = content["model"]["vocab"].pop("<\uff5cend\u2581of\u2581sentence\uff5c>")
    (tmp_path / "t").mkdir()
    (tmp_path / "t/tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="has no end-of-sequence token that ends a document; name eos_token"):
        run(config(corpus, tokenizer=str(tmp_path / "t")), tmp_path / "out")
