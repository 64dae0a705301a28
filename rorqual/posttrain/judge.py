r"""A chat model as a judge (report sections 5.2.1 and 5.4.2): it reasons, then gives scores; several votes, answers in both orders.

    judge = Judge(open_teacher("runs/model"), JudgeConfig(votes=4))
    judge.compare([("q1", "Which is larger ...?", first, second, None)])["q1"].word      # "first", "second", "tie" or "unknown"
    judge.grade([("q1", Item(question, answer, reference="42"))])["q1"].value             # 0 to 1; NaN where it could not judge

A comparison is voted on an even number of times, half of them with the answers exchanged, the first order drawn from (seed, name): a
judge that prefers a place adds as much to one answer as to the other, and no gap is left. As for DeepSeek-R1's preference data (section
2.3.4: judged four times in random order, a gap over 1 kept) the mean of the scores decides. Only the last line of what the judge itself
writes behind its reasoning counts; votes without one are counted and left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rorqual.data import counters
from rorqual.errors import ConfigError
from rorqual.posttrain.generate import Draft, Drawing, Teacher
from rorqual.posttrain.problems import Problem
from rorqual.posttrain.reward_data import Item, item_of, judging, quoted
from rorqual.posttrain.rewards import Outcome, unknown
from rorqual.posttrain.rollout import Answer
from rorqual.train.records import number, whole

COMPARE = (
    "You compare two answers to a question. Check which of them is right, does what the question asks, and is clear; length and order count "
    "for nothing. Where a reference answer is given, an answer that does not agree with it is wrong. Reason first, about both. Then end with "
    "one line of exactly this form, with scores from 1 (useless) to 10 (perfect):\nScores: A=<score> B=<score>"
)
GRADE = (
    "You grade an answer to a question. Check whether it is right, does what the question asks, and is clear. Reason first. Then end with one "
    "line of exactly this form, with a score from 1 (useless) to 10 (perfect):\nScore: <score>"
)
MATCH = (
    "You check an answer against a reference answer. Only whether both say the same counts, not how. Reason first. Then end with one line of "
    "exactly this form:\nVerdict: <right or wrong>"
)
_NUMBER = r"(\d{1,2}(?:\.\d+)?)"
_SCORES = re.compile(rf"\W*scores\W+a\W*[=:]\W*{_NUMBER}(?:/10)?[,;]?\s+b\W*[=:]\W*{_NUMBER}(?:/10)?\W*", re.IGNORECASE)
_SCORE = re.compile(rf"\W*score\W*[=:]\W*{_NUMBER}(?:/10)?\W*", re.IGNORECASE)
_VERDICT = re.compile(r"\W*verdict\W*[=:]\W*(right|wrong)\W*", re.IGNORECASE)


@dataclass(frozen=True)
class JudgeConfig:
    """`votes` of each case; a comparison needs a mean gap of more than `min_gap`, on the scale from 1 to 10, to have a winner."""

    votes: int = 4
    min_gap: float = 1.0
    drawing: Drawing = field(default_factory=lambda: Drawing(temperature=0.7, max_tokens=1024))

    def __post_init__(self) -> None:
        whole("votes", self.votes, 1)
        number("min_gap", self.min_gap, 0)
        if self.votes > 1 and self.drawing.temperature == 0:
            raise ConfigError(
                f"votes ({self.votes}) at temperature 0 are one vote; use 1 (or 2 for a comparison), or a temperature such as 0.7"
            )


@dataclass(frozen=True)
class Comparison:
    """`gap` is the first answer's mean score minus the second's, NaN where too few votes could be read; `unread` counts those that could not.

    `preferred_place` is the mean of (score of what was shown first - of what was shown second): what the place alone is worth to this judge.
    """

    word: str
    gap: float
    scores: tuple[float, float]
    unread: int
    preferred_place: float
    reasoning: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grade:
    """`value` from 0 to 1 and `score` on the judge's own scale (1 to 10; with a reference 1 or 0), NaN where too few votes could be read.

    `reasoning` is that of the vote nearest to the mean.
    """

    value: float
    score: float
    unread: int
    reasoning: str = ""


Pair = tuple[str, str, str, str, str | None]
"""(name, question, first answer, second answer, reference or None)"""


class Judge:
    """Asks a teacher for verdicts. As a reward component it grades, with the gold answer as the reference where a problem has one."""

    def __init__(self, teacher: Teacher, config: JudgeConfig | None = None) -> None:
        self.teacher, self.config = teacher, config or JudgeConfig()
        self._known: dict[str, Grade] = {}

    # ------------------------------------------------------------------ two answers

    def compare(self, pairs: Sequence[Pair]) -> dict[str, Comparison]:
        """A comparison of each pair, by its name; an odd number of votes is raised by one."""
        votes = self.config.votes + self.config.votes % 2
        asked: list[tuple[str, Sequence[Any]]] = []
        for pair in pairs:
            for vote in range(votes):
                asked.append((f"{pair[0]}/{vote}", _shown(pair, self._swapped(pair[0], vote))))
        said = self._ask(asked)
        return {
            pair[0]: self._compared([(self._swapped(pair[0], vote), said.get(f"{pair[0]}/{vote}")) for vote in range(votes)])
            for pair in pairs
        }

    def _swapped(self, name: str, vote: int) -> bool:
        """Whether this vote sees the second answer first: every other one, beginning with a draw."""
        return (counters.Draws(self.config.drawing.seed, "order", name).below(2) + vote) % 2 == 1

    def _compared(self, votes: Sequence[tuple[bool, Draft | None]]) -> Comparison:
        straight: list[tuple[float, float]] = []
        turned: list[tuple[float, float]] = []
        reasons: list[str] = []
        for swapped, draft in votes:
            scores = scores_of(draft)
            if scores is not None and draft is not None:
                (turned if swapped else straight).append(scores)
                reasons.append(_reasoning(draft))
        read = len(straight) + len(turned)
        if not straight or not turned or 2 * read < len(votes):
            return Comparison("unknown", math.nan, (math.nan, math.nan), len(votes) - read, math.nan, tuple(reasons))
        # each order counts alike, however many of its votes could be read
        first = (_mean([a for a, _ in straight]) + _mean([b for _, b in turned])) / 2
        second = (_mean([b for _, b in straight]) + _mean([a for a, _ in turned])) / 2
        place = (_mean([a - b for a, b in straight]) + _mean([a - b for a, b in turned])) / 2
        gap = first - second
        word = "tie" if abs(gap) <= self.config.min_gap else "first" if gap > 0 else "second"
        return Comparison(word, gap, (first, second), len(votes) - read, place, tuple(reasons))

    # ------------------------------------------------------------------ one answer

    def grade(self, items: Sequence[tuple[str, Item]]) -> dict[str, Grade]:
        """A grade of each (name, item): with a reference whether both say the same, without one a score."""
        asked: list[tuple[str, Sequence[Any]]] = []
        for name, item in items:
            turns = judging(item, GRADE if item.reference is None else MATCH)
            asked += [(f"{name}/{vote}", turns) for vote in range(self.config.votes)]
        said = self._ask(asked)
        return {name: self._graded(item, [said.get(f"{name}/{vote}") for vote in range(self.config.votes)]) for name, item in items}

    def _graded(self, item: Item, votes: Sequence[Draft | None]) -> Grade:
        read = score_of if item.reference is None else verdict_of
        found = [(value, draft) for draft in votes if draft is not None and (value := read(draft)) is not None]
        unread = len(votes) - len(found)
        if not found or 2 * len(found) < len(votes):
            return Grade(math.nan, math.nan, unread)
        mean = _mean([value for value, _ in found])
        nearest = min(found, key=lambda one: abs(one[0] - mean))[1]
        return Grade((mean - 1) / 9 if item.reference is None else mean, mean, unread, _reasoning(nearest))

    def prefetch(self, cases: Sequence[tuple[Problem, Answer]]) -> None:
        """Grades many answers at once, for calls that follow. TeacherGone passes."""
        items = [(problem, item) for problem, answer in cases if (item := item_of(problem, answer)) is not None]
        self._known = self.grade(list({_name(problem, item): item for problem, item in items}.items()))

    def __call__(self, problem: Problem, answer: Answer) -> Outcome:
        """The reward component `model`: with a reference 1 where most votes say right and 0 where most say wrong, else the mean grade."""
        item = item_of(problem, answer)
        if item is None:
            return Outcome("wrong", 0.0, "no whole answer")
        name = _name(problem, item)
        grade = self._known[name] if name in self._known else self.grade([(name, item)])[name]
        if not math.isfinite(grade.value):
            return unknown(f"{grade.unread} of {self.config.votes} votes could not be read")
        if item.reference is None:
            return Outcome("right" if grade.value > 0.5 else "wrong", grade.value, grade.reasoning[:200])
        if grade.value == 0.5:
            return unknown("as many votes for right as for wrong")
        return Outcome("right" if grade.value > 0.5 else "wrong", float(grade.value > 0.5), grade.reasoning[:200])

    def _ask(self, asked: Sequence[tuple[str, Sequence[Any]]]) -> dict[str, Draft]:
        """One draft for each name; names that cannot be answered are not there. TeacherGone passes."""
        found: dict[str, Draft] = {}
        for name, drafts in self.teacher.draw(asked, replace(self.config.drawing, n=1)):
            if not isinstance(drafts, str):
                found[name] = drafts[0]
        return found


# ---------------------------------------------------------------------- text in, numbers out


def _name(problem: Problem, item: Item) -> str:
    """Of the votes on an answer: the same alone as among others."""
    return f"{problem.id}/{counters.key(item.answer):016x}"


def _shown(pair: Pair, swapped: bool) -> list[dict[str, str]]:
    _, question, first, second, reference = pair
    a, b = (second, first) if swapped else (first, second)
    parts = [f"Question:\n{quoted(question)}"]
    if reference is not None:
        parts.append(f"Reference answer:\n{quoted(reference)}")
    parts += [f"Answer A:\n{quoted(a)}", f"Answer B:\n{quoted(b)}"]
    return [{"role": "system", "content": COMPARE}, {"role": "user", "content": "\n\n".join(parts)}]


def _last_line(draft: Draft | None) -> str:
    if draft is None or draft.cut or not draft.closed:
        return ""
    return (draft.content.strip().splitlines() or [""])[-1]


def _matched(pattern: re.Pattern[str], draft: Draft | None, read: Callable[[re.Match[str]], float | None]) -> float | None:
    found = pattern.fullmatch(_last_line(draft))
    return None if found is None else read(found)


def _in_range(text: str) -> float | None:
    value = float(text)
    return value if 1 <= value <= 10 else None


def scores_of(draft: Draft | None) -> tuple[float, float] | None:
    """The two scores of a judge's last line; None where it does not have the form, or a score is not from 1 to 10."""
    found = _SCORES.fullmatch(_last_line(draft))
    a, b = (None, None) if found is None else (_in_range(found[1]), _in_range(found[2]))
    return None if a is None or b is None else (a, b)


def score_of(draft: Draft | None) -> float | None:
    """The score of a judge's last line, from 1 to 10, or None."""
    return _matched(_SCORE, draft, lambda found: _in_range(found[1]))


def verdict_of(draft: Draft | None) -> float | None:
    """1 for right and 0 for wrong by a judge's last line, or None."""
    return _matched(_VERDICT, draft, lambda found: float(found[1].lower() == "right"))


def _reasoning(draft: Draft) -> str:
    """What stands before the last line, or the reasoning block of a model that writes nothing else."""
    before = "\n".join(draft.content.strip().splitlines()[:-1]).strip()
    return before or draft.reasoning.strip()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
