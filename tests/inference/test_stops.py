"""Stop strings: every cutting of the tokens gives the same text, and nothing of a stop string leaks."""

from __future__ import annotations

import itertools

import pytest

from rorqual.inference.stops import StopStream


def run(pieces, stop=(), include=False):
    stream = StopStream(lambda number: pieces[number], stop, include)
    parts = []
    for number in range(len(pieces)):
        parts.append(stream.add([number]))
        if stream.matched is not None:
            break
    return "".join(parts) + stream.finish(), stream.matched, parts


def cuttings(raw: bytes, pieces: int):
    for cuts in itertools.combinations(range(1, len(raw)), pieces - 1):
        bounds = [0, *cuts, len(raw)]
        yield [raw[a:b] for a, b in itertools.pairwise(bounds)]


@pytest.mark.parametrize(
    ("text", "stop", "want", "matched"),
    [
        ("abcENDx", ("END",), "abc", "END"),
        ("abENENDx", ("END",), "abEN", "END"),
        ("aEN", ("END",), "aEN", None),
        ("abcde", ("bcd", "abcde"), "a", "bcd"),  # complete first wins
        ("xabab", ("bab", "abab"), "x", "abab"),  # complete together: the longest
        ("é🦈!", ("🦈",), "é", "🦈"),
        ("é🦈!", ("!",), "é🦈", "!"),
    ],
)
def test_every_cutting_gives_the_same_text(text, stop, want, matched):
    raw = text.encode()
    for count in range(1, 5):
        for pieces in cuttings(raw, count):
            got, found, _ = run(pieces, stop)
            assert (got, found) == (want, matched), pieces
            assert run(pieces, stop, include=True)[0] == (want + matched if matched else want)


def test_all_tokens_at_once_are_the_same_as_one_by_one():
    stream = StopStream(lambda number: b"abcde"[number : number + 1], ("bcd", "abcde"))
    assert stream.add(range(5)) == "a" and stream.matched == "bcd" and stream.add([0]) == "" and stream.finish() == ""


def test_text_is_held_back_only_while_it_may_be_a_stop_string():
    _, _, parts = run([b"a", b"E", b"N", b"x", b"E"], ("END",))
    assert parts == ["a", "", "", "ENx", ""]


def test_a_cut_character_is_one_replacement_and_a_stray_byte_does_not_stall():
    assert run(["🦈".encode()[:2]])[0] == "\ufffd"
    assert run([b"\x80", b"a", b"b"])[2] == ["\ufffd", "a", "b"]
