"""`rorqual tokenizer train`: a folder that loads, bounded text, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from rorqual.cli.main import main
from rorqual.tokenizer import bpe
from tests.data.corpora import documents, write_jsonl


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "a.jsonl", documents(30))


def test_a_trained_folder_loads(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenizer", "train", str(corpus), "--vocab-size", "300", "--out", str(tmp_path / "t")]) == 0
    tokenizer = bpe.load(tmp_path / "t")
    assert tokenizer.vocab_size == 300
    assert capsys.readouterr().out == f"{tmp_path}/t: 300 ids, fingerprint {tokenizer.fingerprint[:16]}\n"
    expected = bpe.train(documents(30), 300, tmp_path / "expected")
    assert tokenizer.fingerprint == expected.fingerprint


def test_text_that_is_too_little_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["ab ab"])
    assert main(["tokenizer", "train", str(path), "--out", str(tmp_path / "t")]) == 0
    assert "fewer ids than the 4,096 asked for; give more text" in capsys.readouterr().out


def test_no_more_text_is_read_than_asked(corpus: Path, tmp_path: Path) -> None:
    """Documents are taken whole until the limit is passed."""
    main(["tokenizer", "train", str(corpus), "--vocab-size", "300", "--out", str(tmp_path / "t"), "--bytes", "1"])
    assert bpe.load(tmp_path / "t").fingerprint == bpe.train(documents(30)[:1], 300, tmp_path / "one").fingerprint


def test_the_standard_library_without_inputs(tmp_path: Path) -> None:
    assert main(["tokenizer", "train", "--vocab-size", "300", "--out", str(tmp_path / "t"), "--bytes", "20000"]) == 0
    assert bpe.load(tmp_path / "t").vocab_size == 300


def test_a_folder_that_exists_is_never_overwritten(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t").mkdir()
    assert main(["tokenizer", "train", str(corpus), "--out", str(tmp_path / "t")]) == 1
    assert "t exists; a tokenizer is never overwritten" in capsys.readouterr().err and not list((tmp_path / "t").iterdir())


def test_zero_documents(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenizer", "train", str(corpus), "--text-field", "body", "--out", str(tmp_path / "t")]) == 1
    assert "has zero documents; check the paths and --text-field ('body')" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train"], "--out"),
        ([], "verb"),
        (["learn"], "invalid choice"),
        (["train", "--out", "x", "--vocab-size", "12"], r"--vocab-size (12) must be 276 or more"),
        (["train", "--out", "x", "--vocab-size", "many"], "invalid int value"),
    ],
)
def test_wrong_usage(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["tokenizer", *argv])
    assert message in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["tokenizer", "--help"], ["tokenizer", "train", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(argv)
    printed = capsys.readouterr().out
    assert all(option in printed for option in ("--vocab-size N", "--out DIR", "--bytes N", "(default: 4096)"))
