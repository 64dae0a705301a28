"""Joins tests and candidate across two boxes: this text runs in both, with the standard library alone. No torch.

    box of the tests  ── socket ──>  box of the candidate
    expected values, comparisons     the candidate's code, nothing else

Plain values (numbers, texts, lists, dicts, dates, ...) cross as copies, so what the tests compare is data, with no method of the candidate's.
Everything else crosses as a reference, whose use is a message to its owner. The candidate's side reaches nothing of the tests' side but what
was handed to it, and there no private names and no frames. An object of the candidate's cannot claim to equal a plain value, to be less than
one, or to contain one.
"""

from __future__ import annotations

import builtins
import importlib
import json
import operator
import os
import struct
import sys
import threading
from typing import Any

from rorqual.eval.isolation.remote import OPERATIONS, Remote

_FAR = (
    "gi_frame",
    "gi_code",
    "gi_yieldfrom",
    "cr_frame",
    "cr_code",
    "ag_frame",
    "ag_code",
    "f_back",
    "f_globals",
    "f_locals",
    "f_builtins",
    "tb_frame",
)
_DATED = {
    "datetime.datetime": ("year", "month", "day", "hour", "minute", "second", "microsecond"), "datetime.date": ("year", "month", "day"),
    "datetime.time": ("hour", "minute", "second", "microsecond"), "datetime.timedelta": ("days", "seconds", "microseconds"),
    "fractions.Fraction": ("numerator", "denominator"),
}  # fmt: skip
_ORDERED = {"l": list, "t": tuple, "s": set, "z": frozenset}
_BUILTINS = (
    "iter",
    "next",
    "len",
    "str",
    "repr",
    "bool",
    "int",
    "float",
    "complex",
    "hash",
    "round",
    "reversed",
    "isinstance",
    "issubclass",
)
_LARGEST = 64 << 20


class CandidateError(Exception):
    """The candidate ended, or raised what is no error (SystemExit)."""


class Peer:
    """One end. `guarded` is the tests' end, which shows little of itself."""

    def __init__(self, link: int, *, guarded: bool) -> None:
        self._link, self._guarded = link, guarded
        self._lock = threading.RLock()
        self._shown: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}  # by id; _shown keeps the objects, so ids stay theirs
        self._classes: dict[int, type] = {}

    # ------------------------------------------------------------------ messages

    def _send(self, message: Any) -> None:
        body = json.dumps(message).encode()
        view = memoryview(struct.pack("=I", len(body)) + body)
        while view:
            view = view[os.write(self._link, view) :]

    def _receive(self) -> Any:
        size = struct.unpack("=I", self._exactly(4))[0]
        if size > _LARGEST:
            raise CandidateError("a message is too long")
        return json.loads(self._exactly(size))

    def _exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = os.read(self._link, min(1 << 20, count - len(parts)))
            if not part:
                raise CandidateError("the other program has ended")
            parts += part
        return bytes(parts)

    def ask(self, kind: str, *arguments: Any) -> Any:
        """Sends a request and serves what comes until its answer; raises what the other side raised."""
        with self._lock:
            try:
                self._send(["?", kind, [self.packed(one) for one in arguments]])
                while True:
                    message = self._receive()
                    if message[0] == "?":
                        self._answer(message)
                    elif message[0] == "=":
                        return self.unpacked(message[1])
                    else:
                        break
            except (OSError, ValueError, TypeError, IndexError, KeyError, struct.error) as error:
                raise CandidateError(f"the other program broke the connection: {error}") from None
            fault = self._fault(message)
        raise fault

    def serve(self) -> None:
        """Answers requests until the other side is gone."""
        try:
            while True:
                with self._lock:
                    self._answer(self._receive())
        except (CandidateError, OSError):
            return

    def _answer(self, message: Any) -> None:
        try:
            arguments = [self.unpacked(one) for one in message[2]]
            out = ["=", self.packed(self._done(message[1], arguments))]
        except BaseException as error:
            out = self._raised(error)
        self._send(out)

    def _done(self, kind: str, given: list[Any]) -> Any:
        if kind == "call":
            return given[0](*given[1], **given[2])
        if kind in ("getattr", "setattr", "delattr"):
            if self._guarded and (kind != "getattr" or str(given[1]).startswith("_") or given[1] in _FAR):
                raise AttributeError(given[1])
            return getattr(builtins, kind)(*given)
        if kind == "operator" and given[0] in OPERATIONS:
            return getattr(operator, given[0])(*given[1:])
        if kind == "builtin" and given[0] in _BUILTINS:
            return getattr(builtins, given[0])(*given[1:])
        if kind == "enter":
            return given[0].__enter__()
        if kind == "exit":
            return given[0].__exit__(*given[1:])
        if kind == "import" and not self._guarded:
            return importlib.import_module(given[0])
        if kind == "names" and not self._guarded:
            return [name for name in given[1] if hasattr(given[0], name)]
        raise ValueError(f"unknown request {kind!r}")

    # ------------------------------------------------------------------ errors

    def _raised(self, error: BaseException) -> Any:
        kind = type(error)
        base = next(one for one in kind.__mro__ if one.__module__ == "builtins")
        name = base.__name__ if issubclass(base, Exception) else ""
        try:
            arguments = self.packed(list(error.args))
        except BaseException:
            arguments = self.packed([])
        text = ""
        try:
            text = str(error)
        except BaseException:
            pass
        own = None if kind is base else self._reference(kind)
        return ["!", name, arguments, text[:2000], own, None if kind is base else self._reference(error)]

    def _fault(self, message: Any) -> Exception:
        try:
            _, name, arguments, text, own, value = message
            given = self.unpacked(arguments)
            if not name:
                return CandidateError(text or "it stopped itself")
            kind = self.unpacked(own) if own is not None else getattr(builtins, str(name))
            fault = kind.__new__(kind, *given)
            fault.args = tuple(given)
            if own is not None:
                fault.__dict__["_remote"] = self.unpacked(value)
        except Exception:
            return CandidateError("an error that cannot be read")
        return fault if isinstance(fault, Exception) else CandidateError("an error that is none")

    def _error_class(self, number: int, name: str, base: str) -> type:
        if number not in self._classes:
            parent = getattr(builtins, base)

            def value(self: Any, name: str) -> Any:
                remote = self.__dict__.get("_remote")
                if remote is None or name.startswith("__"):
                    raise AttributeError(name)
                return getattr(remote, name)

            made = type(str(name), (parent,), {"__getattr__": value, "__module__": "candidate"})
            setattr(made, "_rorqual_number", number)  # noqa: B010
            self._classes[number] = made
        return self._classes[number]

    # ------------------------------------------------------------------ values

    def packed(self, value: Any) -> Any:
        """A value as JSON: copies of plain values, references to the rest."""
        kind = type(value)
        if value is None or kind in (bool, str):
            return value
        if isinstance(value, Remote):
            return ["o", object.__getattribute__(value, "_number")]
        if isinstance(value, type):
            number = value.__dict__.get("_rorqual_number")
            if number is not None:
                return ["o", number]
            if value.__module__ == "builtins":
                return ["k", value.__name__]
            return self._reference(value)
        if isinstance(value, int) and not hasattr(value, "_value_"):
            return int(value) if -(1 << 62) < value < 1 << 62 else ["i", hex(int(value))]
        if isinstance(value, float):
            return ["f", float.__repr__(value)] if value != value or value in (float("inf"), float("-inf")) else float(value)
        if isinstance(value, str) and not hasattr(value, "_value_"):
            return str.__str__(value)
        if kind is complex:
            return ["c", self.packed(value.real), self.packed(value.imag)]
        if isinstance(value, (bytes, bytearray)):
            return ["b" if isinstance(value, bytes) else "a", bytes(value).hex()]
        if isinstance(value, dict):
            return ["d", [[self.packed(key), self.packed(one)] for key, one in dict.items(value)]]
        for tag, base in _ORDERED.items():
            if isinstance(value, base) and not hasattr(value, "_fields"):
                return [tag, [self.packed(one) for one in base.__iter__(value)]]
        if kind is range:
            return ["r", value.start, value.stop, value.step]
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name == "decimal.Decimal":
            return ["n", str(value)]
        if name in _DATED and getattr(value, "tzinfo", None) is None:
            return ["v", name, [getattr(value, part) for part in _DATED[name]]]
        return self._reference(value)

    def _reference(self, value: Any) -> Any:
        number = self._numbers.setdefault(id(value), len(self._numbers) + 1)
        self._shown[number] = value
        base = ""
        if isinstance(value, type) and issubclass(value, Exception):
            base = next(one for one in value.__mro__ if one.__module__ == "builtins").__name__
        return ["h", number, getattr(value, "__name__", "") if base else "", base]

    def unpacked(self, value: Any) -> Any:
        """The value of a message; ValueError, TypeError, IndexError or KeyError for one that is none."""
        if not isinstance(value, list):
            return value
        tag, *rest = value
        if tag in _ORDERED:
            return _ORDERED[tag](self.unpacked(one) for one in rest[0])
        if tag == "d":
            return {self.unpacked(key): self.unpacked(one) for key, one in rest[0]}
        if tag == "i":
            return int(rest[0], 16)
        if tag == "f":
            return float(rest[0])
        if tag == "n":
            return importlib.import_module("decimal").Decimal(rest[0])
        if tag == "c":
            return complex(self.unpacked(rest[0]), self.unpacked(rest[1]))
        if tag in ("b", "a"):
            return (bytes if tag == "b" else bytearray).fromhex(rest[0])
        if tag == "r":
            return range(*rest)
        if tag == "v":
            module, _, name = rest[0].partition(".")
            return getattr(importlib.import_module(module if rest[0] in _DATED else ""), name)(*rest[1])
        if tag == "k":
            found = getattr(builtins, str(rest[0]))
            if not isinstance(found, type):
                raise ValueError("no class")
            return found
        if tag == "o":
            return self._shown[rest[0]]
        if tag == "h":
            return self._error_class(rest[0], rest[1], rest[2]) if rest[2] else Remote(self, rest[0])
        raise ValueError(f"unknown tag {tag!r}")


def serve_candidate() -> None:
    """The candidate's box: answers the tests at descriptor 3. Modules lie in the work folder."""
    sys.path.insert(0, ".")
    sys.set_int_max_str_digits(0)
    sys.setrecursionlimit(10_000)
    Peer(3, guarded=False).serve()
