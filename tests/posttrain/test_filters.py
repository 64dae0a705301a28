"""What an answer must be to be kept: values by hand."""

from __future__ import annotations

import pytest

from rorqual.errors import ConfigError
from rorqual.posttrain.filters import FilterConfig, Seen, grams, language_of, loops, mixed, overlap, rejected, repeated_share, words

LONG = " ".join(f"word{number}" for number in range(12))


def test_words_are_folded_and_ideographs_stand_alone():
    assert words("Hello, WORLD! \u6df1\u5ea6 x_1") == ["hello", "world", "\u6df1", "\u5ea6", "x_1"]
    assert words("\uff21\uff22\uff23") == ["abc"]  # full width
    assert list(grams(["a", "b", "c"], 2)) == ["a b", "b c"]
    assert list(grams(["a"], 2)) == []


def test_repeated_share_counts_letters_in_runs_that_came_before():
    once = [f"w{number:02}" for number in range(10)]
    assert repeated_share(" ".join(once)) == 0.0
    assert repeated_share(" ".join(once * 2)) == 0.5
    assert repeated_share(" ".join(once * 4)) == 0.75
    assert repeated_share(" ".join([*once, "x", *once])) == pytest.approx(30 / 61)
    assert repeated_share("") == 0.0


@pytest.mark.parametrize(
    ("text", "found"),
    [("ab" * 10, True), ("ab" * 9, False), ("the same. " * 10, True), ("-" * 80, False), ("0" * 80, False), (LONG, False)],
)
def test_loops_need_ten_rounds_and_a_letter(text, found):
    assert loops(text) is found


def test_the_question_decides_the_language():
    assert language_of("What is this?") == "en"
    assert language_of("\u8fd9\u662f\u4ec0\u4e48 x?") == "zh"
    assert language_of("12 + 30 = ?") == "en"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("this is all in one language indeed", False),
        ("this is in two \u6df1\u5ea6\u6c42\u7d22\u7684\u6a21\u578b languages", True),
        ("\u6df1\u5ea6\u6c42\u7d22\u7684\u6a21\u578b" * 4, True),
        ("$\\alpha$ \\frac \\boxed \\text \\sqrt \\sum", False),  # formulas are of no language
        ("\u6df1\u5ea6", False),  # too short to judge
    ],
)
def test_mixed_languages(text, found):
    assert mixed(text, "en", 0.9) is found


@pytest.mark.parametrize(
    ("reasoning", "content", "tokens", "reason"),
    [
        ("so it is", "42", 5, ""),
        ("so it is", "  ", 5, "format"),
        ("", "a <think> b", 5, "format"),
        ("a </think>", "b", 5, "format"),
        ("so it is", "42", 1, "length"),
        ("so it is", "42", 101, "length"),
        ("\u6df1\u5ea6\u6c42\u7d22\u7684\u6a21\u578b" * 4, "42", 5, "language"),
        (f"{LONG} {LONG}", "42", 30, "repetition"),
        ("it loops " * 10, "42", 30, "repetition"),
    ],
)
def test_the_first_reason_is_named(reasoning, content, tokens, reason):
    assert rejected("What is it?", reasoning, content, tokens, FilterConfig(min_tokens=2, max_tokens=100)) == reason


def test_a_chinese_question_wants_a_chinese_answer():
    text = "\u6df1\u5ea6\u6c42\u7d22\u7684\u6a21\u578b" * 4
    assert rejected("\u8fd9\u662f\u4ec0\u4e48?", "", text.replace("\u6c42", "\u627e", 1), 9, FilterConfig(max_repeated=1.0)) == ""
    assert rejected("\u8fd9\u662f\u4ec0\u4e48?", "", "an answer in another language", 9, FilterConfig()) == "language"


def test_seen_and_overlap():
    seen = Seen()
    assert [seen.again(text) for text in ("A b", "a  B\n", "a c")] == [False, True, False]
    assert overlap("a b c", "a b c") == 1.0
    assert overlap("a b c d e f", "a b c d e g") == pytest.approx(1 / 3)
    assert overlap("one", "two") == 0.0


def test_bounds_are_checked():
    with pytest.raises(ConfigError, match="max_repeated"):
        FilterConfig(max_repeated=1.5)
    with pytest.raises(ConfigError, match="target_language"):
        FilterConfig(language="xx")
