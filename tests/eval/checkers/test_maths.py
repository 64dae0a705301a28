"""F38: the table of answers that others judged wrongly, both ways round, and where an answer stands in a text."""

from __future__ import annotations

import pytest

from rorqual.eval.checkers import maths

AT_ONCE = [
    (r"\frac{1}{2}", "0.5", "right"), ("1,234", "1234", "right"), ("1/3", "0.333", "wrong"), ("1/3", "0.3333333", "wrong"), ("12 cm", "12 m", "wrong"),
    ("-0", "0", "right"), (r"50\%", "0.5", "right"), ("12 cm", "12", "right"), ("007", "7", "right"), (r"1\frac{1}{2}", r"\frac32", "right"),
    (r"90^\circ", "90", "right"), (r"10\text{ inches}", "10 in", "right"), (r"\text{(B)}", "B", "right"), ("B", "A", "wrong"), ("Evelyn", r"\text{evelyn}", "right"),
    ("1.0", "1", "right"), (r"-\frac{3}{4}", "-0.75", "right"), ("0.1", "0.10000000000000001", "wrong"), (r"\$5.00", "5", "right"), ("1e2", "1e2", "right"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "word"), AT_ONCE)
def test_numbers_units_and_words_are_decided_at_once(one, other, word):
    first, second = maths.at_once(one, other), maths.at_once(other, one)
    assert first is not None and second is not None and (first.word, second.word) == (word, word)


def test_what_is_never_paid():
    assert maths.at_once("see figure", "see figure") == ("undecided", "the right answer is prose")
    assert maths.at_once(" ", "4") == ("undecided", "there is no right answer")
    assert maths.at_once("4", " ") == ("wrong", "empty")
    assert maths.at_once("4", "4" * 3000) == ("wrong", "longer than 2000 characters")


def test_what_is_left_to_the_library():
    for one, other in (("1,234", "(1,234)"), ("x=5", "5"), ("2x", "3x"), (r"\pm 7", "7"), ("5", "5 or 6"), ("2:30", "1:30")):
        assert maths.at_once(one, other) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{\sqrt{2}}}.", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{1} or rather \boxed{2}", "2"),
        (r"<think>\boxed{3}</think> I do not know", None),
        (r"<think>\boxed{3}", None),
        (r"<think>no</think> \boxed{4}", "4"),
        (r"The answer is 5. \boxed{}", None),
        (r"\boxed{5", None),
        (r"\boxed{1} and \boxed{2", None),
        (r"\boxed 7", "7"),
        (r"\fbox{8}", "8"),
        ("Final Answer: The final answer is $[2,5)$. I hope it is correct.", "[2,5)"),
        ("The answer is 12.", "12"),
        ("因此答案是：7。", "7"),
        ("I do not know", None),
        ("", None),
    ],
)
def test_where_the_answer_stands(text, answer):
    assert maths.answer_of(text) == answer
