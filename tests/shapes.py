"""Checks the shapes in the package's tensor signatures while tests run: `Float[Tensor, "b s m"]` means it, for arguments and results.

An import hook wraps every function of the rooms below whose annotations have a shape; axes of one call must agree. A call costs
more than the small tensors of a test, so each function is checked in its first CALLS calls of a test and runs at full speed after.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
from collections.abc import Callable, Sequence
from types import ModuleType, UnionType
from typing import Any, get_args, get_origin

from jaxtyping import AbstractArray, jaxtyped
from torch import compiler

ROOMS = ("rorqual.kernels.", "rorqual.model.", "rorqual.train.", "rorqual.inference.")
CALLS = 20


class ShapeError(TypeError):
    """A tensor whose shape or type is not what the signature says."""


class Checks:
    """Counts the checked calls of each function; a new test starts anew."""

    def __init__(self) -> None:
        self.calls: dict[Callable[..., Any], int] = {}

    def due(self, function: Callable[..., Any]) -> bool:
        """Whether this call of `function` is to be checked."""
        count = self.calls.get(function, 0) + 1
        self.calls[function] = count
        return count <= CALLS


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of ROOMS as usual, and has them wrapped once they are loaded."""

    def __init__(self, checks: Checks) -> None:
        self.checks = checks

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        """The spec of a module to wrap, None for all others."""
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if name.startswith(ROOMS) else None
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                _wrap_members(module, module.__name__, self.checks)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> Checks:
    """Wraps what is imported from now on; returns the counter that a new test clears."""
    early = [name for name in sys.modules if name.startswith(ROOMS)]
    if early:
        raise RuntimeError(f"imported before their shapes could be checked: {', '.join(early)}")
    checks = Checks()
    sys.meta_path.insert(0, Finder(checks))
    return checks


def _wrap_members(owner: Any, module: str, checks: Checks) -> None:
    for name, member in list(vars(owner).items()):
        if inspect.isclass(member) and member.__module__ == module and member is not owner:
            _wrap_members(member, module, checks)
        elif isinstance(member, staticmethod | classmethod):
            setattr(owner, name, type(member)(checked(member.__func__, checks)))
        elif isinstance(member, property) and member.fget is not None:
            setattr(owner, name, property(checked(member.fget, checks), member.fset, member.fdel, member.__doc__))
        elif inspect.isfunction(member) and (member.__module__ == module or name == "__init__"):
            setattr(owner, name, checked(member, checks))


def checked(function: Callable[..., Any], checks: Checks) -> Callable[..., Any]:
    """`function` behind a check of its annotations that have a shape; `function` itself where none has."""
    origin = inspect.unwrap(function)
    hints = {name: hint for name, hint in _hints(origin).items() if _has_shape(hint)}
    if not hints:
        return function
    signature = inspect.signature(origin)
    result = hints.pop("return", None)
    where = f"{origin.__module__}.{origin.__qualname__}"

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if compiler.is_compiling() or not checks.due(function):
            return function(*args, **kwargs)
        with jaxtyped("context"):
            arguments = signature.bind(*args, **kwargs).arguments
            for name, hint in hints.items():
                if name in arguments:
                    _check(arguments[name], hint, f"{where}: {name}")
            out = function(*args, **kwargs)
            if result is not None:
                _check(out, result, f"{where}: result")
        return out

    return run


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations that mention a tensor, evaluated one by one: others may name what exists for the type checker alone."""
    namespace = getattr(function, "__globals__", {})
    texts = {name: hint for name, hint in getattr(function, "__annotations__", {}).items() if "Tensor, " in str(hint)}
    return {name: eval(hint, dict(namespace)) if isinstance(hint, str) else hint for name, hint in texts.items()}


def _has_shape(hint: Any) -> bool:
    return (inspect.isclass(hint) and issubclass(hint, AbstractArray)) or any(map(_has_shape, get_args(hint)))


def _check(value: Any, hint: Any, what: str) -> None:
    if not _fits(value, hint):
        raise ShapeError(f"{what} is {_told(value)}; the signature says {getattr(hint, '__name__', hint)}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether the shapes in a hint are those of the value; lists and mappings hold tensors of any shape."""
    parts = get_args(hint)
    if isinstance(hint, UnionType):
        return any(_fits(value, part) for part in parts)
    if get_origin(hint) is tuple and isinstance(value, tuple):
        wanted = parts[:1] * len(value) if parts[1:] == (Ellipsis,) else parts
        return len(wanted) == len(value) and all(map(_fits, value, wanted))
    return isinstance(value, hint) if inspect.isclass(hint) else True


def _told(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_told, value))})"
    return f"{value.dtype} {list(value.shape)}" if hasattr(value, "shape") else type(value).__name__
