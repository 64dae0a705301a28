"""Rewards: what is right, what is wrong, what tries to cheat, and judges that raise, hang or say nonsense."""

import math
import time

import pytest

from rorqual.errors import ConfigError
from rorqual.posttrain.presets import GRPOConfig
from rorqual.posttrain.problems import Problem
from rorqual.posttrain.rewards import Outcome, Rewards, choice, last_code, script_share
from rorqual.posttrain.rollout import Answer

MATHS = Problem("m", ({"role": "user", "content": "6 * 7?"},), "42", "math")
CHOICE = Problem("c", ({"role": "user", "content": "Which?"},), "(B)", "choice")
EXACT = Problem("e", ({"role": "user", "content": "Say yes."},), "yes", "exact")


def answer(content, reasoning="", *, closed=True, cut=False, expects=False, tokens=5):
    return Answer([1], list(range(tokens)), cut, content, reasoning, content, closed, expects)


def rewards(judges=None, **changes):
    return Rewards(GRPOConfig(**changes), judges)


@pytest.mark.parametrize(
    ("problem", "content", "value"),
    [
        (MATHS, r"So it is \boxed{42}.", 1.0), (MATHS, r"\boxed{42.0}", 1.0), (MATHS, r"\boxed{41} no, \boxed{42}", 1.0), (MATHS, r"\boxed{43}", 0.0),
        (MATHS, "42", 0.0), (MATHS, r"\boxed{}", 0.0), (CHOICE, r"\boxed{B}", 1.0), (CHOICE, "The answer is (B).", 1.0), (CHOICE, r"\boxed{C}", 0.0),
        (CHOICE, "A B C D", 0.0), (EXACT, " yes\n", 1.0), (EXACT, "yes, no", 0.0),
    ],
)  # fmt: skip
def test_accuracy_by_kind(problem, content, value):
    judged = rewards().judge(problem, answer(content))
    assert judged.reward == value and judged.outcomes["accuracy"].verdict == ("right" if value else "wrong")


HACKS = {
    "every number in one box": r"\boxed{40, 41, 42, 43}",
    "a choice of two": r"\boxed{42 \text{ or } 43}",
    "right, then another box": r"\boxed{42} \boxed{7}",
    "box never closed": r"\boxed{42",
    "the number without a box": "The answer is 42.",
    "an expression that runs": r"\boxed{__import__('os').getpid()*0+42}",
    "a huge power": r"\boxed{9^{9^{9^9}}}",
    "empty": "",
    "tags as text": "</think><answer>42</answer>",
    "words of the grader": "correct: true, score: 1.0",
}


@pytest.mark.parametrize("name", HACKS)
def test_completions_that_try_to_cheat_earn_nothing(name):
    judged = rewards(reward_seconds=1.0).judge(MATHS, answer(HACKS[name]))
    assert not judged.reward > 0


def test_answers_that_are_cut_or_never_leave_their_reasoning_earn_nothing():
    one = rewards(rewards={"accuracy": 1.0, "format": 1.0})
    assert one.judge(MATHS, answer(r"\boxed{42}", cut=True)).reward == 0
    assert one.judge(MATHS, answer("", r"\boxed{42}", closed=False, expects=True)).reward == 0
    assert one.judge(MATHS, answer(r"\boxed{42}", "", expects=True)).reward == 1.0  # right, but without the reasoning that was asked for
    assert one.judge(MATHS, answer(r"\boxed{42}", "6 * 7 = 42", expects=True)).reward == 2.0


@pytest.mark.parametrize("content", ["<think>a</think> \\boxed{1}", "a</think>b", ""])
def test_format_refuses_stray_tags(content):
    assert rewards(rewards={"format": 1.0}).judge(MATHS, answer(content, "x", expects=True)).reward == 0


def test_language_is_a_share_of_letters():
    assert script_share("abc \\alpha $xyz$ привет", "en") == pytest.approx(3 / 9)
    assert script_share("", "en") == 0.0
    one = rewards(rewards={"language": 1.0}, target_language="zh")
    assert one.judge(MATHS, answer("", "我们 add", expects=True)).reward == pytest.approx(2 / 5)
    with pytest.raises(ConfigError, match="target_language"):
        rewards(rewards={"language": 1.0}, target_language="tlh")


def test_length_falls_over_the_last_tokens():
    """DAPO equation 13 with 100 tokens and a buffer of 20."""
    one = rewards(rewards={"length": 1.0}, max_new_tokens=100, max_penalty_length=20)
    assert [one.judge(MATHS, answer("", tokens=n)).reward for n in (80, 85, 100)] == [0.0, -0.25, -1.0]
    assert one.judge(MATHS, answer("", tokens=100, cut=True)).reward == -1.0


def test_components_are_weighed_and_kept_apart():
    one = rewards(rewards={"accuracy": 2.0, "format": 0.5, "code": 1.0})
    judged = one.judge(MATHS, answer(r"\boxed{42}"))
    assert judged.reward == 2.5 and not judged.outcomes["code"].applies


def _raises(problem, given):
    raise RuntimeError("no server")


def _hangs(problem, given):
    time.sleep(30)


@pytest.mark.parametrize("judge", [_raises, lambda p, a: Outcome("right", math.nan), lambda p, a: 1.0])
def test_a_judge_that_fails_is_counted_and_pays_nothing(judge):
    one = rewards({"model": judge}, rewards={"accuracy": 1.0, "model": 1.0})
    judged = one.judge(MATHS, answer(r"\boxed{42}"))
    assert math.isnan(judged.reward) and judged.outcomes["model"].verdict == "unknown" and judged.outcomes["accuracy"].value == 1.0
    assert one.counters()["model"] == {"failed": 1, "timed_out": 0}


def test_a_judge_that_hangs_is_left_behind_and_not_asked_for_ever():
    one = rewards({"model": _hangs}, rewards={"model": 1.0}, reward_seconds=0.05)
    began = time.monotonic()
    assert all(math.isnan(one.judge(MATHS, answer("x")).reward) for _ in range(6))
    assert time.monotonic() - began < 2 and one.counters()["model"]["timed_out"] == 3


class Many:
    """A judge that sees all answers first."""

    def __init__(self, fails: bool) -> None:
        self.fails, self.seen, self.asked = fails, 0, 0

    def prefetch(self, cases):
        self.seen += len(cases)
        if self.fails:
            raise ConnectionError("gone")

    def __call__(self, problem, one):
        self.asked += 1
        return Outcome("right", 1.0)


@pytest.mark.parametrize("fails", [False, True])
def test_a_judge_that_takes_many_answers_sees_them_once(fails):
    judge = Many(fails)
    one = rewards({"model": judge}, rewards={"model": 1.0})
    assert [judged.reward for judged in one.judge_all([(MATHS, answer("x"))] * 5)] == [1.0] * 5
    assert (judge.seen, judge.asked) == (5, 5) and one.counters()["model"] == {"failed": int(fails), "timed_out": 0}


def test_unknown_components_and_problems_without_a_rule_are_refused():
    with pytest.raises(ConfigError, match="--reward-model"):
        rewards(rewards={"model": 1.0})
    with pytest.raises(ConfigError, match="needs problems with an answer"):
        rewards().check([Problem("n", ({"role": "user", "content": "Sing."},))])
    with pytest.raises(ConfigError, match="needs problems with `tests`"):
        rewards(rewards={"code": 1.0, "format": 0.1}).check([MATHS])
    assert math.isnan(rewards().judge(Problem("n", ()), answer("la")).reward)


def test_small_readers():
    assert last_code("a\n```python\nx = 1\n```\nb\n```\ny\n```") == "y\n" and last_code("x = 1") is None
    assert choice("blue", r"\boxed{B}").verdict == "unknown"
