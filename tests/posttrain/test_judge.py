"""Votes in both orders, by hand; last lines that count and those that do not."""

from __future__ import annotations

import math

import pytest

from rorqual.errors import ConfigError
from rorqual.posttrain.generate import Drawing
from rorqual.posttrain.judge import Judge, JudgeConfig, score_of, scores_of, verdict_of
from rorqual.posttrain.problems import problem_of
from rorqual.posttrain.reward_data import Item
from rorqual.posttrain.rollout import Answer
from tests.posttrain.teachers import Scripted, draft

PAIR = ("q", "Which?", "good", "bad", None)


def _compare(say, **changes):  # type: ignore[no-untyped-def]
    return Judge(Scripted(say), JudgeConfig(**changes)).compare([PAIR])["q"]


def _first_shown(messages) -> str:  # type: ignore[no-untyped-def]
    return messages[-1]["content"].split("Answer A:\n> ")[1].split("\n")[0]


def test_half_of_the_votes_see_the_other_order():
    judge = Judge(Scripted(lambda *_: "Scores: A=5 B=5"))
    judge.compare([(f"q{number}", *PAIR[1:]) for number in range(20)])
    shown = [_first_shown(messages) for messages in judge.teacher.messages]
    assert all(sorted(shown[at : at + 4]) == ["bad", "bad", "good", "good"] for at in range(0, 80, 4))
    assert 0 < sum(shown[at] == "good" for at in range(0, 80, 4)) < 20  # which comes first is drawn


def test_the_better_answer_wins_wherever_it_stands():
    def say(_name, messages, _number):  # type: ignore[no-untyped-def]
        return "I see.\nScores: A=8 B=5" if _first_shown(messages) == "good" else "Hm.\nScores: A=4 B=9"

    found = _compare(say)
    assert (found.word, found.gap, found.scores, found.unread) == ("first", 4.0, (8.5, 4.5), 0)
    assert found.preferred_place == -1.0 and set(found.reasoning) == {"I see.", "Hm."}


def test_a_judge_that_prefers_a_place_finds_no_winner():
    found = _compare(lambda *_: "Scores: A=9 B=2")
    assert (found.word, found.gap, found.preferred_place) == ("tie", 0.0, 7.0)


def test_a_gap_of_one_is_no_gap():
    def say(_name, messages, _number):  # type: ignore[no-untyped-def]
        return "Scores: A=6 B=5" if _first_shown(messages) == "good" else "Scores: A=5 B=6"

    assert _compare(say).word == "tie"
    assert _compare(say, min_gap=0.5).word == "first"


def test_votes_that_cannot_be_read_are_counted_and_too_few_decide_nothing():
    def say(_name, messages, _number):  # type: ignore[no-untyped-def]
        return "Scores: A=9 B=2" if _first_shown(messages) == "good" else "no idea"

    found = _compare(say)  # one order is not there at all
    assert found.word == "unknown" and found.unread == 2 and math.isnan(found.gap)
    assert _compare(lambda *_: ValueError("too long")).word == "unknown"


def test_both_orders_count_alike_when_a_vote_is_lost():
    def say(name, messages, _number):  # type: ignore[no-untyped-def]
        if _first_shown(messages) == "bad":
            return "Scores: A=9 B=2" if name in ("q/0", "q/1") else "?"
        return "Scores: A=9 B=2"

    assert _compare(say).gap == 0.0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Scores: A=7 B=4", (7.0, 4.0)), ("so\n**Scores: A=7.5, B=10**", (7.5, 10.0)), ("scores: a: 7/10; b: 4/10", (7.0, 4.0)),
        ("Scores: A=7 B=4\nbut then", None), ("Scores: A=0 B=4", None), ("Scores: A=11 B=4", None), ("Scores: A=7", None), ("", None),
        ("I would say Scores: A=7 B=4", None),
    ],
)  # fmt: skip
def test_last_lines_of_comparisons(text, found):
    assert scores_of(draft(text)) == found


def test_other_last_lines():
    assert score_of(draft("well\nScore: 8/10")) == 8.0 and score_of(draft("Score: 12")) is None
    assert (
        verdict_of(draft("Verdict: right.")) == 1.0
        and verdict_of(draft("**Verdict:** wrong")) == 0.0
        and verdict_of(draft("right")) is None
    )
    assert score_of(draft("Score: 8", cut=True)) is None and score_of(draft("", "Score: 8", closed=False)) is None
    assert score_of(draft("", "Score: 8")) is None  # what is thought is not said


def test_grades_without_and_with_a_reference():
    said = iter(["x\nScore: 10", "y\nScore: 4", "z\nScore: 7", "?"])
    grade = Judge(Scripted(lambda *_: next(said))).grade([("q", Item("Why?", "So."))])["q"]
    assert (grade.value, grade.score, grade.unread, grade.reasoning) == (pytest.approx(2 / 3), 7.0, 1, "z")
    said = iter(["Verdict: right", "Verdict: right", "Verdict: wrong", "Verdict: right"])
    judge = Judge(Scripted(lambda *_: next(said)))
    assert judge.grade([("q", Item("Why?", "So.", "So!"))])["q"].value == 0.75
    assert "Reference answer:\n> So!" in judge.teacher.messages[0][-1]["content"]


@pytest.mark.parametrize(
    ("votes", "verdict", "value"),
    [
        (["right"] * 3 + ["wrong"], "right", 1.0),
        (["wrong"] * 3 + ["right"], "wrong", 0.0),
        (["right", "wrong"] * 2, "unknown", None),
        (["?"] * 4, "unknown", None),
    ],
)
def test_as_a_component(votes, verdict, value):
    said = iter(votes)
    judge = Judge(Scripted(lambda *_: f"Verdict: {next(said)}"))
    outcome = judge(problem_of({"prompt": "Why?", "answer": "So"}), Answer([], [1], False, content="So."))
    assert outcome.verdict == verdict and (math.isnan(outcome.value) if value is None else outcome.value == value)


def test_nothing_is_asked_about_an_answer_that_is_not_whole():
    judge = Judge(Scripted(lambda *_: "Score: 10"))
    problem = problem_of({"prompt": "Why?"})
    assert judge(problem, Answer([], [1], True, content="So.")).value == 0.0 and judge.teacher.asked == []
    assert judge(problem, Answer([], [1], False, content="Score: 10")).value == 1.0


def test_equal_votes_are_refused():
    with pytest.raises(ConfigError, match="are one vote"):
        JudgeConfig(drawing=Drawing(temperature=0.0))


def test_many_answers_at_once_get_the_votes_that_each_gets_alone():
    teacher = Scripted(lambda name, *_: f"Score: {1 + sum(map(ord, name)) % 10}")
    problem, judge = problem_of({"prompt": "Why?", "id": "w"}), Judge(teacher)
    answers = [Answer([], [1], False, content=text) for text in ("So.", "Thus.")]
    alone = [judge(problem, answer).value for answer in answers]
    judge.prefetch([(problem, answer) for answer in answers])
    asked = len(teacher.asked)
    assert [judge(problem, answer).value for answer in answers] == alone and len(teacher.asked) == asked == 16
