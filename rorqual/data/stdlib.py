"""The corpus that every machine has: the source of the running interpreter's standard library. Report section 4.1, small.

Source `code` is its .py files (`pydoc_data/topics.py` apart, a table of prose); `prose` is those topics, the docstrings of the .py
files and the .txt files; `arithmetic` is generated (synthetic.py). The docstrings of a file are one document that follows the file into training or
validation, and every docstring that occurs in a validation file is taken out of training prose: otherwise the prose would
give away text on which the code source is validated.
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from rorqual.data.corpus import File, Range, ranges
from rorqual.data.dedup import Split
from rorqual.data.records import BOM, Record, from_bytes
from rorqual.errors import DataError

_SKIPPED: Final = frozenset({"site-packages", "dist-packages", "__pycache__", "lib-dynload"})
_TOPICS: Final = os.path.join("pydoc_data", "topics.py")
_ARITHMETIC_BYTES: Final = 600
_ARITHMETIC_DOCUMENTS: Final = 2048


def library() -> Path:
    """Folder of the standard library of the running interpreter."""
    return Path(sysconfig.get_path("stdlib"))


def describe(files: list[File]) -> dict[str, Any]:
    """What a result on this corpus has to name: interpreter, whether its `test` package was there, bytes used."""
    return {
        "interpreter": f"{platform.python_implementation()} {platform.python_version()}",
        "test_package": (library() / "test" / "test_grammar.py").is_file(),
        "bytes": {
            "code": sum(file.size for file in files if file.source == "code"),
            "text": sum(file.size for file in files if file.source == "prose"),
        },
    }


def find_files(root: Path | None = None) -> list[File]:
    """Python files (`code`), then topics and text files (`prose`), by path; links are left out. DataError if there is no library."""
    root = root or library()
    code: list[File] = []
    prose: list[File] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.islink(path) or not name.endswith((".py", ".txt")):
                continue
            topics = os.path.relpath(path, root) == _TOPICS
            status = os.stat(path)
            source, kind = ("prose", "topics" if topics else "files") if topics or name.endswith(".txt") else ("code", "files")
            (prose if source == "prose" else code).append(File(source, kind, path, status.st_size, status.st_mtime_ns))
    if not code:
        raise DataError(
            f"{root} holds no .py files: this Python was installed without its source; give a corpus, for example a folder of text"
        )
    return code + prose


def corpus_ranges(files: list[File], arithmetic_documents: int, size: int) -> list[Range]:
    """Ranges of the whole default corpus: code, prose (topics, docstrings, text files), arithmetic."""
    code = ranges((file for file in files if file.source == "code"), "", size)
    topics = [Range("prose", "topics", (file.path,), size=file.size) for file in files if file.kind == "topics"]
    docstrings = [Range("prose", "docstrings", span.files, size=span.size // 8) for span in code]
    texts = ranges((file for file in files if file.source == "prose" and file.kind == "files"), "", size)
    step = min(_ARITHMETIC_DOCUMENTS, max(1, size // _ARITHMETIC_BYTES))
    cuts = range(0, arithmetic_documents, step)
    generated = [(start, min(start + step, arithmetic_documents)) for start in cuts]
    arithmetic = [Range("arithmetic", "arithmetic", (), start, stop, (stop - start) * _ARITHMETIC_BYTES) for start, stop in generated]
    return code + topics + docstrings + texts + arithmetic


def docstrings(raw: bytes) -> list[str]:
    """Docstrings of module, classes and functions in order of their lines, cleaned as `inspect.cleandoc` does; none if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(raw)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [text for node in _documented(tree) if (text := (ast.get_docstring(node) or "").strip())]


def _documented(tree: ast.AST) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Module, classes and functions in the order of their lines; only statements are visited, which expressions outnumber by far.

    A stack of its own: a thousand chained `elif` nest as deep as that.
    """
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        inner = [child for block in ("body", "handlers", "orelse", "finalbody", "cases") for child in getattr(node, block, None) or ()]
        waiting.extend(child for child in reversed(inner) if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case))


def docstring_digest(text: str) -> bytes:
    """By which a held-out docstring is recognised."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def held_out_docstrings(files: list[File], split: Split) -> list[bytes]:
    """Digests of all docstrings in the code files that `split` holds out."""
    found: set[bytes] = set()
    for file in files:
        if file.source == "code":
            raw = Path(file.path).read_bytes()
            if split.holds_out(split.digest(raw.removeprefix(BOM))):
                found.update(map(docstring_digest, docstrings(raw)))
    return sorted(found)


def docstring_records(files: tuple[str, ...], held_out: frozenset[bytes], split: Split) -> Iterator[Record]:
    """One document per file with docstrings; a file without is no record. Held-out ones stay only where the file itself is held out."""
    for path in files:
        raw = Path(path).read_bytes()
        owner, texts = split.digest(raw.removeprefix(BOM)), docstrings(raw)
        if not split.holds_out(owner):
            texts = [text for text in texts if docstring_digest(text) not in held_out]
        if texts:
            yield from_bytes(path, 1, ("\n\n".join(texts) + "\n").encode("utf-8", "surrogatepass"), owner)


def topic_records(files: tuple[str, ...]) -> Iterator[Record]:
    """Help topics, one document each, in the order of their names."""
    for path in files:
        tree = ast.parse(Path(path).read_bytes())
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
                table = ast.literal_eval(statement.value)
                for line, name in enumerate(sorted(table), 1):
                    yield from_bytes(path, line, str(table[name]).encode())
