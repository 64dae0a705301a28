"""The source tree as the guards see it: files, module names, and imports read with `ast`, nothing executed."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rorqual"

# The report's table of contents, and the import order: a folder imports only from folders above it (docs/architecture.md).
ORDER = ("errors", "config", "presets", "html", "planner", "kernels", "model", "fp8", "adapters", "parallel", "tokenizer", "checkpoint", "inference",
         "data", "eval", "train", "posttrain", "recipes", "ledger", "server", "cli")  # fmt: skip

# Rooms and files that never import torch when they are imported; numpy is allowed in those of the second list only.
NO_TORCH = ("errors", "config", "presets", "html", "planner", "recipes", "train.hyperparams", "train.schedules", "train.records", "cli")
NO_TORCH_BUT_NUMPY = ("data", "tokenizer")


class Import(NamedTuple):
    """One import: where, of what, and whether it is inside a function or under TYPE_CHECKING (so that it costs nothing at import)."""

    path: Path
    line: int
    module: str
    lazy: bool


def sources(folder: Path = PACKAGE) -> list[Path]:
    """Every Python file below `folder`."""
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def name_of(path: Path) -> str:
    """`rorqual/model/mla.py` -> `rorqual.model.mla`; `__init__.py` stands for its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """`rorqual.model.mla` -> `model`; a top-level file is a room of its own."""
    return module.split(".")[1] if "." in module else ""


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@functools.cache
def imports(path: Path) -> tuple[Import, ...]:
    """Every import of a file, at any depth."""
    return tuple(_imports(path, parsed(path).body, False))


def _imports(path: Path, body: list[ast.stmt], lazy: bool) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import):
            yield from (Import(path, node.lineno, alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            yield Import(path, node.lineno, base, lazy)
            if base.split(".")[0] == "rorqual":  # `from rorqual.kernels import ops` may name a module
                yield from (
                    Import(path, node.lineno, f"{base}.{alias.name}", lazy) for alias in node.names if is_module(f"{base}.{alias.name}")
                )
        for part in ("body", "orelse", "finalbody"):
            inner = getattr(node, part, None)
            if isinstance(inner, list):
                function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                typing_only = part == "body" and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
                yield from _imports(path, inner, lazy or function or typing_only)
        for handler in getattr(node, "handlers", []):
            yield from _imports(path, handler.body, lazy)


@functools.cache
def is_module(name: str) -> bool:
    """Whether a dotted name is a file or folder of the package."""
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def symbols(path: Path) -> set[str]:
    """Names that a file defines at top level, and `Class.member` for the methods and fields of its classes."""
    found: set[str] = set()
    for node in parsed(path).body:
        found |= _defined(node)
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                found |= {f"{node.name}.{name}" for name in _defined(inner)}
                if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
                    found |= {
                        f"{node.name}.{n.attr}" for n in ast.walk(inner) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "self"
                    }
    return found


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return set()
