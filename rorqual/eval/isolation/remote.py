"""Stand-ins for objects of the other box: using one sends a message to its owner. Runs in boxes, with the standard library alone. No torch.

A stand-in equals no plain value, is in no order with one and contains none, whatever its owner says: what tests compare must be data.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

OPERATIONS = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift", "neg", "pos", "invert", "abs",
    "eq", "ne", "lt", "le", "gt", "ge", "getitem", "setitem", "delitem",
)  # fmt: skip


class Remote:
    """A reference to an object of the other side."""

    def __init__(self, peer: Any, number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__name__", "__doc__", "__self__", "__wrapped__", "__members__"):
            raise AttributeError(name)
        return _ask(self, "getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, "setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        _ask(self, "delattr", self, name)

    def __call__(self, *given: Any, **named: Any) -> Any:
        return _ask(self, "call", self, list(given), named)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Remote):
            return False  # an object of the other side equals no plain value, whatever it says
        if object.__getattribute__(self, "_number") == object.__getattribute__(other, "_number"):
            return True
        return _ask(self, "operator", "eq", self, other) is True

    def __ne__(self, other: object) -> bool:
        if not isinstance(other, Remote):
            return True
        return _ask(self, "operator", "ne", self, other) is not False

    def __hash__(self) -> int:
        return int(_ask(self, "builtin", "hash", self))

    def __iter__(self) -> Iterator[Any]:
        stepping = _ask(self, "builtin", "iter", self)
        if not isinstance(stepping, Remote):
            yield from stepping
            return
        while True:
            try:
                one = next(stepping)
            except StopIteration:
                return
            yield one

    def __next__(self) -> Any:
        return _ask(self, "builtin", "next", self)

    def __len__(self) -> int:
        return int(_ask(self, "builtin", "len", self))

    def __bool__(self) -> bool:
        return _ask(self, "builtin", "bool", self) is True

    def __str__(self) -> str:
        return str(_ask(self, "builtin", "str", self))

    def __repr__(self) -> str:
        return str(_ask(self, "builtin", "repr", self))

    def __int__(self) -> int:
        return int(_ask(self, "builtin", "int", self))

    def __float__(self) -> float:
        return float(_ask(self, "builtin", "float", self))

    def __round__(self, *digits: int) -> Any:
        return _ask(self, "builtin", "round", self, *digits)

    def __reversed__(self) -> Any:
        return _ask(self, "builtin", "reversed", self)

    def __getitem__(self, key: Any) -> Any:
        return _ask(self, "operator", "getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _ask(self, "operator", "setitem", self, key, value)

    def __delitem__(self, key: Any) -> None:
        _ask(self, "operator", "delitem", self, key)

    def __enter__(self) -> Any:
        return _ask(self, "enter", self)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        return _ask(self, "exit", self, kind, error, None)

    def __instancecheck__(self, other: object) -> bool:
        return isinstance(other, Remote) and _ask(self, "builtin", "isinstance", other, self) is True


def _ask(remote: Remote, kind: str, *arguments: Any) -> Any:
    peer: Any = object.__getattribute__(remote, "_peer")
    return peer.ask(kind, *arguments)


def _compare(name: str) -> Any:
    def work(self: Remote, other: object) -> Any:
        return _ask(self, "operator", name, self, other) if isinstance(other, Remote) else NotImplemented

    return work


def _forward(name: str, turned: bool) -> Any:
    def work(self: Remote, *others: Any) -> Any:
        given = (*others, self) if turned else (self, *others)
        return _ask(self, "operator", name, *given)

    return work


for _name in ("lt", "le", "gt", "ge"):
    setattr(Remote, f"__{_name}__", _compare(_name))
for _name in OPERATIONS[:17]:
    _plain = _name.rstrip("_")
    setattr(Remote, f"__{_plain}__", _forward(_name, False))
    if _name in OPERATIONS[:13]:
        setattr(Remote, f"__r{_plain}__", _forward(_name, True))


class FarModule(types.ModuleType):
    """A module of the candidate's, as the tests import it."""

    def __init__(self, name: str, peer: Any) -> None:
        super().__init__(name)
        self.__dict__["_module"] = None
        self.__dict__["_peer"] = peer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._far(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("__"):
            super().__setattr__(name, value)
        else:
            setattr(self._far(), name, value)  # tests that patch a name of the module patch it where it is used

    def __delattr__(self, name: str) -> None:
        delattr(self._far(), name)

    def _far(self) -> Any:
        if self.__dict__["_module"] is None:
            self.__dict__["_module"] = self.__dict__["_peer"].ask("import", self.__name__)
        return self.__dict__["_module"]
