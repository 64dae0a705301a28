"""JSON round trips, differences and overrides of nested configuration records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rorqual.errors import ConfigError
from rorqual.train.records import changes, from_plain, override, to_plain


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    count: int
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    kind: Literal["a", "b"] = "a"
    weights: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] | None = None
    on: bool = False


@given(
    st.builds(
        Outer,
        count=st.integers(),
        inner=st.builds(Inner, rate=st.floats(allow_nan=False, allow_infinity=False), names=st.lists(st.text(), max_size=3).map(tuple)),
        maybe=st.none() | st.builds(Inner),
        kind=st.sampled_from(["a", "b"]),
        weights=st.dictionaries(st.text(), st.floats(0, 1), max_size=3),
        extra=st.none() | st.just({"a": [1, {"b": None}]}),
        on=st.booleans(),
    )
)
def test_json_round_trip_is_exact(record: Outer) -> None:
    again = from_plain(Outer, json.loads(json.dumps(to_plain(record))))
    assert again == record
    assert repr(again) == repr(record)
    assert changes(record, again) == {}


def test_differences_are_named() -> None:
    a = Outer(1, weights={"x": 1.0})
    b = Outer(2, inner=Inner(rate=0.25), maybe=Inner(), weights={"y": 1.0})
    assert changes(a, b) == {
        "count": (1, 2),
        "inner.rate": (0.5, 0.25),
        "maybe": (None, {"rate": 0.5, "names": []}),
        "weights.x": (1.0, None),
        "weights.y": (None, 1.0),
    }
    assert changes(Outer(1), Outer(True)) == {"count": (1, True)}  # equal in Python, not the same value


def test_overrides_reach_nested_optional_and_mapped_fields() -> None:
    base = Outer(1, weights={"x": 1.0})
    assert override(base, {"inner.rate": 2, "weights.y": 3}) == Outer(1, inner=Inner(rate=2.0), weights={"x": 1.0, "y": 3.0})
    assert override(base, {"maybe": {"names": ["n"]}}).maybe == Inner(names=("n",))
    assert override(Outer(1, maybe=Inner()), {"maybe": None}).maybe is None
    assert base == Outer(1, weights={"x": 1.0})


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({}, "count missing"),
        ({"count": 1, "inner": {"ratee": 1.0}}, "inner.ratee is not a field .*did you mean inner.rate"),
        ({"count": "1"}, r"count \('1'\) must be of type int"),
        ({"count": True}, r"count \(True\) must be of type int"),
        ({"count": 1.0}, r"count \(1.0\) must be of type int"),
        ({"count": 1, "on": 1}, r"on \(1\) must be of type bool"),
        ({"count": 1, "kind": "c"}, r"kind \('c'\) is not known; use 'a' or 'b'"),
        ({"count": 1, "inner": {"rate": float("nan")}}, "inner.rate .*finite"),
        ({"count": 1, "inner": {"names": "abc"}}, r"inner.names \('abc'\) must be a list"),
        ({"count": 1, "inner": {"names": [1]}}, r"inner.names\[0\]"),
        ({"count": 1, "weights": [1]}, "weights .*must be an object"),
        ({"count": 1, "inner": 3}, "inner .*must be an object"),
        ([], "Outer .*must be an object"),
    ],
)
def test_wrong_fields_are_named(plain: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_plain(Outer, plain)


def test_override_of_unknown_or_scalar_paths() -> None:
    with pytest.raises(ConfigError, match="inne is not a field.*did you mean inner"):
        override(Outer(1), {"inne.rate": 1.0})
    with pytest.raises(ConfigError, match="count.x cannot be set: count is 1"):
        override(Outer(1), {"count.x": 1})
