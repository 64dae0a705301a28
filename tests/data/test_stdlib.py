"""The default corpus: what belongs to which source, and that prose gives nothing away of held-out code."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

import pytest

from rorqual.data import records, stdlib
from rorqual.data.dedup import Split
from rorqual.errors import DataError

CODE = '''"""Module   text.

    Indented.
"""
class A:
    """Class text."""
    async def f(self):
        \'\'\'Method text.\'\'\'
        if self:
            def g(): "inner"
        else:
            try:
                pass
            except Exception:
                def h(): "handler"
            finally:
                def i(): "final"
        match self:
            case 1:
                def j(): "case"
        with self:
            for _ in ():
                def k(): "loop"
        "not a docstring"
def empty(): """  """
'''


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {
        "b.py": '"""Shared line."""\nx = 1\n',
        "a.py": '"""Shared line."""\ndef f():\n    """Only in a."""\n',
        "pkg/c.py": "no_docstring = 1\n",
        "pkg/bad.py": "def (:\n",
        "pkg/notes.txt": "notes\n",
        "pydoc_data/topics.py": "# generated\ntopics = {'zip': 'Z text', 'and': 'A text'}\n",
        "site-packages/other.py": "x = 2\n",
        "__pycache__/d.py": "x = 3\n",
        "image.png": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "link.py").symlink_to(tmp_path / "a.py")
    return tmp_path


def test_files_by_source(root: Path) -> None:
    found = [(file.source, file.kind, str(Path(file.path).relative_to(root))) for file in stdlib.find_files(root)]
    assert found == [
        ("code", "files", "a.py"),
        ("code", "files", "b.py"),
        ("code", "files", "pkg/bad.py"),
        ("code", "files", "pkg/c.py"),
        ("prose", "files", "pkg/notes.txt"),
        ("prose", "topics", "pydoc_data/topics.py"),
    ]


def test_an_installation_without_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no .py files: this Python was installed without its source"):
        stdlib.find_files(tmp_path)


def test_ranges(root: Path) -> None:
    spans = stdlib.corpus_ranges(stdlib.find_files(root), 5, 1200)
    assert [(span.source, span.kind) for span in spans] == [
        ("code", "files"),
        ("prose", "topics"),
        ("prose", "docstrings"),
        ("prose", "files"),
        *[("arithmetic", "arithmetic")] * 3,
    ]
    assert [(span.start, span.stop) for span in spans[4:]] == [(0, 2), (2, 4), (4, 5)]
    assert spans[2].files == spans[0].files


def test_docstrings_by_hand() -> None:
    texts = stdlib.docstrings(CODE.encode())
    assert texts == ["Module   text.\n\nIndented.", "Class text.", "Method text.", "inner", "handler", "final", "case", "loop"]


@pytest.mark.parametrize("name", ["ast", "argparse", "functools", "typing"])
def test_docstrings_of_real_files_are_those_a_full_walk_finds(name: str) -> None:
    raw = (stdlib.library() / f"{name}.py").read_bytes()
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = sorted((node for node in ast.walk(ast.parse(raw)) if isinstance(node, kinds)), key=lambda node: getattr(node, "lineno", 0))
    assert stdlib.docstrings(raw) == [text for node in nodes if (text := (ast.get_docstring(node) or "").strip())] != []


@pytest.mark.parametrize("raw", [b"def (:\n", b"\x00", b"# coding: no-such\n", b"x = " + b"(" * 500, b"\xff"])
def test_files_that_do_not_parse_have_none(raw: bytes) -> None:
    assert stdlib.docstrings(raw) == []


def test_topics(root: Path) -> None:
    found = list(stdlib.topic_records((str(root / "pydoc_data/topics.py"),)))
    assert [(record.line, record.text) for record in found] == [(1, "A text"), (2, "Z text")]


def _split(held: Path, kept: Path) -> Split:
    """A split that holds out the first file and not the second."""
    splits = (Split(seed, 0.5) for seed in range(100))
    return next(s for s in splits if s.holds_out(s.digest(held.read_bytes())) and not s.holds_out(s.digest(kept.read_bytes())))


def test_held_out_docstrings_leave_training_prose(root: Path) -> None:
    """a.py is held out: its docstrings are validation; the line that b.py shares with it is in no training document."""
    split = _split(root / "a.py", root / "b.py")
    files = [file for file in stdlib.find_files(root) if Path(file.path).name in ("a.py", "b.py")]
    held = stdlib.held_out_docstrings(files, split)
    assert held == sorted({stdlib.docstring_digest("Shared line."), stdlib.docstring_digest("Only in a.")})
    paths = tuple(file.path for file in files)
    found = list(stdlib.docstring_records(paths, frozenset(held), split))
    owner = split.digest((root / "a.py").read_bytes())
    assert [(Path(record.file).name, record.text, record.owner) for record in found] == [("a.py", "Shared line.\n\nOnly in a.\n", owner)]
    assert split.holds_out(owner)
    free = list(stdlib.docstring_records(paths, frozenset(), Split(0, 0.0)))
    assert [record.text for record in free] == ["Shared line.\n\nOnly in a.\n", "Shared line.\n"]


def test_docstrings_are_read_through_their_range(root: Path) -> None:
    span = stdlib.corpus_ranges(stdlib.find_files(root), 0, 1 << 20)[2]
    found = list(records.read(span, "text", Split(0, 0.5)))
    assert [(Path(record.file).name, record.owner) for record in found] == [
        (name, Split(0, 0.5).digest((root / name).read_bytes())) for name in ("a.py", "b.py")
    ]


def test_a_byte_order_mark_does_not_change_the_owner(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"\xef\xbb\xbf'''Text.'''\n")
    (record,) = stdlib.docstring_records((str(tmp_path / "a.py"),), frozenset(), Split(0, 0.0))
    assert record.owner == Split(0, 0.0).digest(b"'''Text.'''\n") and record.text == "Text.\n"


def test_description(root: Path) -> None:
    found = stdlib.describe(stdlib.find_files(root))
    sizes = {name: sum((root / part).stat().st_size for part in parts) for name, parts in
             {"code": ("a.py", "b.py", "pkg/c.py", "pkg/bad.py"), "text": ("pkg/notes.txt", "pydoc_data/topics.py")}.items()}  # fmt: skip
    assert found["bytes"] == sizes and isinstance(found["test_package"], bool) and found["interpreter"].startswith(("CPython", "PyPy"))


def test_digests_of_texts_with_surrogates() -> None:
    assert stdlib.docstring_digest("\udc80") == hashlib.blake2b(b"\xed\xb2\x80", digest_size=16).digest()


def test_docstrings_of_deeply_chained_branches() -> None:
    chain = "if x == 0:\n    pass\n" + "".join(f"elif x == {i}:\n    pass\n" for i in range(1, 900))
    assert stdlib.docstrings((chain + 'def f():\n    """Last."""\n').encode()) == ["Last."]
