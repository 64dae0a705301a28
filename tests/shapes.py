"""The type checker behind `--jaxtyping-packages`: checks the shapes in tensor signatures, and nothing else, at every call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_args

from beartype import beartype
from jaxtyping import AbstractArray

F = TypeVar("F", bound=Callable[..., Any])


def checked(function: F) -> F:
    """`function` behind a check of its annotations that have a shape; `function` itself where none has, so that the rest runs at full speed."""
    annotations = getattr(function, "__annotations__", {})
    shapes = {name: annotation for name, annotation in annotations.items() if _has_shape(annotation)}
    if not shapes:
        return function
    function.__annotations__ = shapes
    return beartype(function)


def _has_shape(annotation: Any) -> bool:
    if inspect.isclass(annotation) and issubclass(annotation, AbstractArray):
        return True
    return any(map(_has_shape, get_args(annotation)))
