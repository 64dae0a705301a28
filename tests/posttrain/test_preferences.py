"""Pairs with a judge's reasoning: kept where it agrees, resumed where it went away."""

from __future__ import annotations

import json

import pytest

from rorqual.errors import DataError
from rorqual.posttrain.generate import TeacherGone
from rorqual.posttrain.judge import Judge, JudgeConfig
from rorqual.posttrain.preferences import annotate
from rorqual.posttrain.reward_data import read_cases
from tests.posttrain.teachers import Scripted

ROWS = [
    {"prompt": "Which?", "chosen": "good one", "rejected": "bad one"},
    {"prompt": "Which?", "chosen": "bad two", "rejected": "good two"},
    {"prompt": "Which?", "first": "bad three", "second": "good three"},
    {"prompt": "Which?", "chosen": "same", "rejected": "same"},
    {"prompt": "Which?", "chosen": "odd", "rejected": "bad"},
    {"prompt": "Which?", "response": "good", "label": True},
]


def _say(_name, messages, _number):  # type: ignore[no-untyped-def]
    text = messages[-1]["content"]
    if "Answer A:" in text:
        return "Scores: A=8 B=3" if text.index("> good") < text.index("> bad") else "Scores: A=3 B=8"
    return "hm" if "> odd" in text else "It is good.\nScore: 9" if "> good" in text else "It is bad.\nScore: 2"


def _file(tmp_path, rows=ROWS):  # type: ignore[no-untyped-def]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_reasoning_and_scores_stand_beside_what_the_judge_agrees_with(tmp_path):
    counts = annotate(_file(tmp_path), Judge(Scripted(_say)), tmp_path / "judged.jsonl")
    assert counts == {
        "kept": 2, "the grades do not agree with the order": 1, "chosen and rejected are the same": 1, "too few votes could be read": 1,
        "a single answer, where a pair is needed": 1,
    }  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "judged.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [
        {"prompt": "Which?", "chosen": f"good {n}", "rejected": f"bad {n}", "chosen_reasoning": "It is good.", "rejected_reasoning": "It is bad.",
         "chosen_score": 9.0, "rejected_score": 2.0}
        for n in ("one", "three")
    ]  # fmt: skip
    assert len(read_cases(tmp_path / "judged.jsonl").items) == 2


def test_a_judge_that_goes_away_loses_nothing(tmp_path):
    file = _file(tmp_path, [{"prompt": f"{n}?", "chosen": "good", "rejected": "bad"} for n in range(12)])
    config = JudgeConfig(votes=1)
    teacher = Scripted(_say)
    calls = []

    def flaky(asked, how):  # type: ignore[no-untyped-def]
        calls.append(len(asked))
        if len(calls) == 2:
            raise TeacherGone("the teacher answers no more: it has gone")
        yield from teacher.draw(asked, how)

    judge = Judge(teacher, config)
    judge.teacher = type("Flaky", (), {"describe": lambda self: teacher.describe(), "draw": lambda self, asked, how: flaky(asked, how)})()
    with pytest.raises(TeacherGone, match=r"8 of 12 lines are judged"):
        annotate(file, judge, tmp_path / "out.jsonl")
    assert annotate(file, judge, tmp_path / "out.jsonl") == {"kept": 12}
    assert calls == [16, 8, 8]
    annotate(file, Judge(teacher, config), tmp_path / "whole.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        annotate(tmp_path / "nothing", Judge(Scripted(_say)), tmp_path / "out")


def test_with_a_reference_most_votes_must_say_which_is_right(tmp_path):
    rows = [
        {"prompt": "Which?", "chosen": "good", "rejected": "bad", "reference": "x"},
        {"prompt": "Which?", "chosen": "half", "rejected": "bad", "reference": "x"},
    ]

    def say(name, messages, _number):  # type: ignore[no-untyped-def]
        text = messages[-1]["content"]
        right = "> good" in text or ("> half" in text and name[-1] in "01")
        return f"So it is {right}.\nVerdict: {'right' if right else 'wrong'}"

    counts = annotate(_file(tmp_path, rows), Judge(Scripted(say)), tmp_path / "judged.jsonl")
    assert counts == {"kept": 1, "the grades do not agree with the order": 1}
    row = json.loads((tmp_path / "judged.jsonl").read_text(encoding="utf-8"))
    assert (row["chosen_reasoning"], row["rejected_reasoning"], row["chosen_score"]) == ("So it is True.", "So it is False.", 10.0)
