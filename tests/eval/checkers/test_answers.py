"""Normalisation, exactness and F1 with values worked out by hand from each dataset's own rules."""

from __future__ import annotations

import pytest

from rorqual.eval.checkers import answers


def test_squad_form():
    assert answers.squad("The  Eiffel-Tower, (a) U.S. icon!") == "eiffeltower us icon"
    assert answers.squad("theatre") == "theatre" and answers.squad("An the a") == ""


def test_trivia_form_puts_spaces_where_marks_were():
    assert answers.trivia("Spider_Man (the \u2018hero\u2019)") == "spider man hero"
    assert answers.trivia("Spider-Man") == "spider man" and answers.squad("Spider-Man") == "spiderman"


def test_exact():
    assert answers.exact("the Beatles.", ["Rolling Stones", "Beatles"]) == 1.0
    assert answers.exact("Beatle", ["Beatles"]) == 0.0
    assert answers.exact("The!", ["..."]) == 0.0  # nothing is left of either
    assert answers.exact("Spider Man", ["Spider-Man"]) == 0.0 and answers.exact("Spider Man", ["Spider-Man"], answers.trivia) == 1.0
    assert answers.exact("《红楼梦》。", ["红楼梦"]) == 1.0


def test_f1_of_words():
    """said "cat sat", gold "cat sat down": common 2, P 1, R 2/3, F1 0.8."""
    assert answers.f1("the cat sat", ["a dog", "The cat sat down"]) == pytest.approx(0.8)
    assert answers.f1("cat cat", ["cat"]) == pytest.approx(2 / 3)
    assert answers.f1("", ["cat"]) == 0.0 and answers.f1("x", []) == 0.0
    assert answers.f1("北京市", ["北京"]) == pytest.approx(0.8)  # 2 of 3 characters, 2 of 2


@pytest.mark.parametrize(
    ("said", "gold", "expected"),
    [
        (["4"], ["4"], (1.0, 1.0)),
        (["four"], ["4"], (0.0, 0.0)),  # the number is missing
        (["4 yards"], ["4"], (0.0, 0.67)),  # P 1/2, R 1
        (["4.0"], ["4"], (1.0, 1.0)),  # numbers are compared as floats
        (["the 49ers"], ["49ers"], (1.0, 1.0)),
        (["Smith"], ["John Smith", "Jones"], (0.0, 0.33)),  # (2/3 + 0) / 2
        (["Jones", "John Smith"], ["John Smith", "Jones"], (1.0, 1.0)),
        ([""], ["x"], (0.0, 0.0)),
    ],
)
def test_drop(said, gold, expected):
    assert answers.drop(said, gold) == expected


def test_drop_assigns_spans_for_the_largest_sum():
    """a-b and a-c: the first row takes "a b" (1), the second keeps 2/3; taking row by row greedily from "a" would give less."""
    assert answers.drop(["a1 b1", "a1"], ["a1 c1", "a1 b1"]) == (0.0, round((1 + 2 / 3) / 2, 2))
    many = [f"w{n}" for n in range(14)]
    assert answers.drop(many, list(reversed(many))) == (1.0, 1.0)
