"""Nested frozen dataclasses to JSON values and back, exactly; their differences by dotted name; dotted overrides; field checks.

No pickle and no import by name: a value is built only from the annotations of the class asked for, so the config.json of a
run folder may come from anywhere. Floats survive to the bit (JSON holds their shortest exact form).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from rorqual.errors import ConfigError

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """JSON value of a dataclass, mapping, tuple or scalar."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    return value


def from_plain(cls: type[T], value: Any, where: str = "") -> T:
    """An instance of `cls` from its JSON value; ConfigError names the field that is unknown, missing or of another type."""
    built: T = _build(cls, value, where)
    return built


def _build(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        arms = get_args(kind)
        if value is None and type(None) in arms:
            return None
        return _build(next(arm for arm in arms if arm is not type(None)), value, where)
    if origin is Literal:
        if value not in get_args(kind):
            raise ConfigError(f"{where} ({value!r}) is not known; use {' or '.join(map(repr, get_args(kind)))}")
        return value
    if dataclasses.is_dataclass(kind):
        return _build_record(kind, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} ({value!r}) must be a list")
        return tuple(_build(get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} ({value!r}) must be an object")
        return {str(key): _build(get_args(kind)[1], item, f"{where}.{key}") for key, item in value.items()}
    return _build_scalar(kind, value, where)


def _build_record(kind: Any, value: Any, where: str) -> Any:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where or kind.__name__} ({value!r}) must be an object")
    hints, names = get_type_hints(kind), [f.name for f in dataclasses.fields(kind)]
    for key in value:
        if key not in names:
            raise ConfigError(_unknown(str(key), names, where))
    required = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    missing = [_join(where, name) for name in required if name not in value]
    if missing:
        raise ConfigError(f"{', '.join(missing)} missing; {kind.__name__} has no default for it")
    return kind(**{key: _build(hints[key], item, _join(where, key)) for key, item in value.items()})


def _build_scalar(kind: Any, value: Any, where: str) -> Any:
    right = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
    if not right or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{where} ({value!r}) must be of type {kind.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} ({value!r}) must be a finite number")
    return float(value) if kind is float else value


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _unknown(key: str, names: list[str], where: str) -> str:
    near = difflib.get_close_matches(key, names, n=1)
    hint = f"did you mean {_join(where, near[0])}?" if near else f"there are {', '.join(names)}"
    return f"{_join(where, key)} is not a field of the configuration; {hint}"


def changes(old: Any, new: Any, where: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted name of every field that differs, with (old, new) as JSON values; None also stands for a key that one side lacks."""
    old, new = to_plain(old), to_plain(new)
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return {key: pair for name in names for key, pair in changes(old.get(name), new.get(name), _join(where, name)).items()}
    return {} if type(old) is type(new) and old == new else {where: (old, new)}


def override(record: T, settings: Mapping[str, Any]) -> T:
    """A copy with dotted fields replaced and everything validated anew: `{"model.rope_scaling": {...}, "data.sources.code": 2.0}`."""
    plain = to_plain(record)
    for name, value in settings.items():
        at, (*path, last) = plain, name.split(".")
        for depth, key in enumerate(path):
            if not isinstance(at.get(key), dict):
                raise ConfigError(
                    _unknown(key, list(at), ".".join(path[:depth]))
                    if key not in at
                    else f"{name} cannot be set: {'.'.join(path[: depth + 1])} is {at[key]!r}"
                )
            at = at[key]
        at[last] = to_plain(value)
    return from_plain(type(record), plain)


# ---------------------------------------------------------------------- checks for __post_init__


def whole(name: str, value: Any, least: int) -> None:
    """Refuses what is not a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} ({value!r}) must be a whole number of at least {least}")


def number(name: str, value: Any, least: float, *, above: bool = False) -> None:
    """Refuses what is not a finite number of at least `least`, or above it."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not real or value < least or (above and value == least):
        raise ConfigError(f"{name} ({value!r}) must be a finite number {'above' if above else 'of at least'} {least}")


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuses a value outside a short list."""
    if value not in allowed:
        raise ConfigError(f"{name} ({value!r}) is not known; use {' or '.join(map(repr, allowed))}")


def ordered(name: str, **boundaries: int) -> None:
    """Refuses boundaries that are not whole, not negative and not falling, in the order given."""
    last_name, last = "0", 0
    for key, value in boundaries.items():
        whole(f"{name}.{key}", value, 0)
        if value < last:
            raise ConfigError(f"{name}.{key} ({value}) must be at least {last_name} ({last})")
        last_name, last = f"{name}.{key}", value
