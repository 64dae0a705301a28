"""Inputs become sources and ranges in a defined order, or are refused by name before work starts."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rorqual.data import corpus
from rorqual.data.corpus import File, Range
from rorqual.errors import DataError


def _names(*inputs: object) -> list[tuple[str, str, str]]:
    return [(file.source, file.kind, Path(file.path).name) for file in corpus.find_files(map(str, inputs))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "b.txt",
        "a.py",
        "sub/c.jsonl",
        "sub/d.jsonl.gz",
        "sub/e.jsonl.zst",
        "z.md",
        "image.png",
        ".hidden.txt",
        "__pycache__/x.py",
        ".git/y.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    return tmp_path


def test_folders_by_path(folder: Path) -> None:
    assert _names(folder) == [("text", "files", "a.py"), ("text", "files", "b.txt"), ("text", "files", "z.md"), ("text", "jsonl", "c.jsonl"),
                              ("text", "gzip", "d.jsonl.gz"), ("text", "zstd", "e.jsonl.zst")]  # fmt: skip


def test_names_globs_and_order_as_given(folder: Path) -> None:
    assert _names(f"web={folder}/sub/*.jsonl*", f"code={folder}/a.py", folder / "b.txt") == [
        ("web", "jsonl", "c.jsonl"),
        ("web", "gzip", "d.jsonl.gz"),
        ("web", "zstd", "e.jsonl.zst"),
        ("code", "files", "a.py"),
        ("text", "files", "b.txt"),
    ]
    assert len(_names(f"{folder}/**/*.txt")) == 1


def test_a_path_with_an_equals_sign_that_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b.txt").write_text("x")
    assert _names("a=b.txt") == [("text", "files", "a=b.txt")] and _names("n=a=b.txt") == [("n", "files", "a=b.txt")]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("gone.txt", "gone.txt does not exist"),
        ("*.parquet", r"\*.parquet holds no file of a supported kind"),
        ("image.png", "image.png has an unknown suffix; supported are .jsonl, "),
        ("empty", "empty holds no file of a supported kind"),
        ("tokenizer=a.py", "source name 'tokenizer' must be letters"),
        ("a b=a.py", "source name 'a b' must be letters"),
        ("=a.py", "source name '' must be letters"),
        ("broken.txt", "broken.txt is not a regular file"),
        ("pipe.txt", "pipe.txt is not a regular file"),
    ],
)
def test_inputs_that_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, item: str, message: str) -> None:
    monkeypatch.chdir(folder)
    Path("empty").mkdir()
    Path("broken.txt").symlink_to("nowhere")
    os.mkfifo("pipe.txt")
    with pytest.raises(DataError, match=message):
        corpus.find_files([item])


def test_an_unreadable_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in, since root may read everything."""

    def refuse(path: str, mode: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(corpus, "open", refuse, raising=False)
    with pytest.raises(DataError, match="cannot read .*b.txt: Permission denied; check its permissions"):
        corpus.find_files([str(folder / "b.txt")])


def test_ranges_cover_everything_once() -> None:
    files = [
        File("a", "files", "1", 5, 0),
        File("a", "files", "2", 6, 0),
        File("a", "files", "3", 1, 0),
        File("b", "files", "4", 1, 0),
        File("b", "jsonl", "5", 25, 0),
        File("b", "jsonl", "6", 0, 0),
        File("b", "gzip", "7", 9, 0),
    ]
    assert corpus.ranges(files, "text", 10) == [
        Range("a", "files", ("1", "2"), size=11),
        Range("a", "files", ("3",), size=1),
        Range("b", "files", ("4",), size=1),
        Range("b", "jsonl", ("5",), 0, 10, 10),
        Range("b", "jsonl", ("5",), 10, 20, 10),
        Range("b", "jsonl", ("5",), 20, 25, 5),
        Range("b", "jsonl", ("6",), 0, 0, 0),
        Range("b", "gzip", ("7",), size=36),
    ]
    assert corpus.estimated_bytes(files) == 5 + 6 + 1 + 1 + 25 + 4 * 9


def test_range_sizes() -> None:
    assert [corpus.range_bytes(total) for total in (0, 1 << 40, 1 << 60)] == [2 << 20, 1 << 28, 1 << 28]


def test_parquet_without_the_column_or_without_text(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "number": [1]}), tmp_path / "a.parquet")
    files = corpus.find_files([str(tmp_path / "a.parquet")])
    with pytest.raises(DataError, match="has no column 'text', only body, number; name one with --text-field"):
        corpus.ranges(files, "text", 1)
    with pytest.raises(DataError, match="column 'number' of .* holds int64, not text"):
        corpus.ranges(files, "number", 1)
