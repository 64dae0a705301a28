"""Values and references across a pair of peers, in one process with two threads."""

from __future__ import annotations

import collections
import enum
import json
import socket
import threading

import pytest

from rorqual.eval.isolation import tested
from rorqual.eval.isolation.link import CandidateError, Peer
from rorqual.eval.isolation.remote import FarModule, Remote


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    near, far = Peer(ours.fileno(), guarded=True), Peer(theirs.fileno(), guarded=False)
    thread = threading.Thread(target=far.serve)
    thread.start()
    yield near, far
    ours.shutdown(socket.SHUT_RDWR)
    thread.join()
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(1 << 70),
        1.5,
        float("-inf"),
        "é\ud800",
        b"\0",
        [1, (2, {3}), frozenset()],
        {1: {"a": []}},
        range(2, 9, 3),
        2 - 1j,
        ValueError,
    ],
)
def test_plain_values_are_copies(value):
    peer = Peer(-1, guarded=True)
    packed = json.loads(json.dumps(peer.packed(value)))
    back = peer.unpacked(packed)
    assert back == value and type(back) is type(value)


def test_subclasses_lose_their_methods():
    class Sly(str):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = str.__hash__

    peer = Peer(-1, guarded=False)
    assert type(peer.unpacked(peer.packed(Sly("x")))) is str
    assert peer.packed(collections.Counter("aab")) == ["d", [["a", 2], ["b", 1]]]
    assert peer.packed(enum.Enum("E", "a").a)[0] == "h"


def test_references_are_used_from_afar(pair):
    near, _ = pair
    module = near.ask("import", "collections")
    deque = module.deque([1, 2, 3])
    deque.append(4)
    assert (
        isinstance(deque, Remote) and list(deque) == [1, 2, 3, 4] and len(deque) == 4 and deque[0] == 1 and isinstance(deque, module.deque)
    )
    assert (deque + module.deque([5]))[4] == 5 and deque == module.deque([1, 2, 3, 4]) and deque != [1, 2, 3, 4]
    with pytest.raises(IndexError):
        deque[9]
    with pytest.raises(TypeError):
        _ = deque < [9]
    assert near.ask("names", module, ["deque", "nothing"]) == ["deque"]


def test_calls_back(pair):
    near, _ = pair
    seen = []
    functools = near.ask("import", "functools")
    assert functools.reduce(lambda a, b: seen.append(a) or a + b, [1, 2, 3]) == 6 and seen == [1, 3]


def test_the_guarded_side_shows_little(pair):
    near, far = pair
    secret = {"word": 1}

    def shown() -> object:
        return secret

    reference = near.packed(shown)
    value = far.unpacked(reference)
    assert isinstance(value, Remote)
    for name in ("__globals__", "__closure__", "__code__", "f_globals", "_x"):
        with pytest.raises(AttributeError):
            near._done("getattr", [shown, name])
    for request in (("import", ["os"]), ("names", [shown, []]), ("operator", ["system", "x"]), ("builtin", ["eval", "1"]), ("nothing", [])):
        with pytest.raises(ValueError, match="unknown request"):
            near._done(*request)


def test_messages_that_are_none():
    ours, theirs = socket.socketpair()
    peer = Peer(ours.fileno(), guarded=True)
    for body in (b"\x02\0\0\0[]", b"\x01\0\0\0{", b"\xff\xff\xff\xff", b'\x05\0\0\0["!"]'):
        theirs.sendall(body)
        with pytest.raises(CandidateError):
            peer.ask("import", "x")
    theirs.close()
    with pytest.raises(CandidateError):
        peer.ask("import", "x")
    ours.close()


def test_errors_that_are_none_end_as_the_candidates():
    peer = Peer(-1, guarded=True)
    assert isinstance(peer._fault(["!", "SystemExit", ["l", []], "x", None, None]), CandidateError)
    assert isinstance(peer._fault(["!", "print", ["l", []], "x", None, None]), CandidateError)
    assert isinstance(peer._fault(["!", "", ["l", []], "stop", None, None]), CandidateError)
    assert repr(peer._fault(["!", "KeyError", ["l", ["a"]], "x", None, None])) == "KeyError('a')"
    assert FarModule("m", peer).__name__ == "m" and callable(tested.main)
