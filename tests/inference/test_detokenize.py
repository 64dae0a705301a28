"""Characters split over tokens arrive whole; a model's control codes never reach the terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rorqual.inference.detokenize import TextStream, printable


def _byte(token: int) -> bytes:
    return bytes([token])


@given(st.text())
def test_bytes_one_by_one_give_the_text_and_no_replacement_character(text):
    stream = TextStream(_byte)
    pieces = [stream.add([byte]) for byte in text.encode()]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_a_character_is_held_back_until_it_is_whole():
    stream = TextStream(_byte)
    first, second, third, last = "\U0001f40b".encode()
    assert [stream.add([first]), stream.add([second, third]), stream.add([last])] == ["", "", "\U0001f40b"]


def test_a_character_cut_off_at_the_end_is_not_shown():
    assert TextStream(_byte).add([*b"ab", 0xE2, 0x82]) == "ab"


def test_bytes_that_are_no_character_are_marked_and_the_next_one_is_right():
    stream = TextStream(_byte)
    assert stream.add([0xFF]) + stream.add([0xE2]) + stream.add([0x41]) == "\ufffd\ufffdA"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\n\tb\u00e9\U0001f40b", "a\n\tb\u00e9\U0001f40b"),
        ("\x1b[2J\x1b]0;owned\x07", "\u241b[2J\u241b]0;owned\u2407"),
        ("x\ry\x7f", "x\u240dy\u2421"),
        ("\x9b31m", "\ufffd31m"),
    ],
)
def test_control_codes_are_shown_not_sent(text, shown):
    assert printable(text) == shown
