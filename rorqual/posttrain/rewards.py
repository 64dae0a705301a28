"""What an answer is worth: typed components, each right, wrong or not judged, kept apart in every log (report section 5.2.1).

    accuracy    1 where the checker of the problem's kind says right          (boxed maths, choice, code in the sandbox, reasoning-gym)
    code        the same for problems with tests alone; no part of others
    format      1 where reasoning and answer stand where they belong, once    (DeepSeek-R1 section 2.2.2)
    language    share of letters of the reasoning in the target language's script    (DeepSeek-R1 section 2.3.2)
    length      0, falling to -1 over the last tokens before the limit        (DAPO, equation 13)
    model       a reward model's score or a judge's verdict

The reward is the weighted sum. A component that raises, takes too long or cannot decide is "unknown", and then so is the whole
reward: the answer is left out, never paid and never punished for the judge's failure. Nothing is paid for an answer that was cut.
"""

from __future__ import annotations

import math
import os
import re
import threading
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from rorqual.errors import ConfigError
from rorqual.eval.checkers import maths as checker
from rorqual.posttrain import grader
from rorqual.posttrain.presets import GRPOConfig
from rorqual.posttrain.problems import Problem
from rorqual.posttrain.rollout import Answer

Verdict = Literal["right", "wrong", "unknown"]


@dataclass(frozen=True)
class Outcome:
    """A component's word on one answer; `value` is NaN where it could not judge. `applies` False: no part of this problem's reward."""

    verdict: Verdict
    value: float
    note: str = ""
    applies: bool = True


Component = Callable[[Problem, Answer], Outcome]
RIGHT, WRONG = Outcome("right", 1.0), Outcome("wrong", 0.0)
NOT_APPLICABLE = Outcome("right", 0.0, applies=False)


def unknown(note: str) -> Outcome:
    """Could not judge, and why."""
    return Outcome("unknown", math.nan, note)


@dataclass(frozen=True)
class Judged:
    """The reward of an answer (NaN: not judged) and what each component said."""

    reward: float
    outcomes: dict[str, Outcome]


class Rewards:
    """The weighted components of a run; `judges` adds components of the caller's own, or `model`, by name."""

    def __init__(self, config: GRPOConfig, judges: Mapping[str, Component] | None = None) -> None:
        self._judges = _Judges(config.reward_seconds)
        known: dict[str, Component] = {
            "accuracy": lambda problem, answer: accuracy(problem, answer, self._judges),
            "code": lambda problem, answer: code(problem, answer, self._judges), "format": format_reward,
            "language": lambda problem, answer: language(problem, answer, config.target_language),
            "length": lambda problem, answer: length(problem, answer, config.max_new_tokens, config.max_penalty_length),
        }  # fmt: skip
        known |= judges or {}
        missing = [name for name in config.rewards if name not in known]
        if missing:
            hint = "; `model` needs --reward-model" if "model" in missing else ""
            raise ConfigError(f"rewards ({', '.join(missing)}) are not known; use {', '.join(known)}{hint}")
        if "language" in config.rewards:
            script_share("", config.target_language)
        self.weights = dict(config.rewards)
        self._components = {name: Guarded(known[name], config.reward_seconds) for name in self.weights}

    def judge(self, problem: Problem, answer: Answer) -> Judged:
        """The reward of one answer."""
        outcomes = {name: component(problem, answer) for name, component in self._components.items()}
        total = sum(self.weights[name] * one.value for name, one in outcomes.items() if one.applies and self.weights[name])
        return Judged(total, outcomes)

    def judge_all(self, pairs: Sequence[tuple[Problem, Answer]]) -> list[Judged]:
        """The rewards of many answers, in their order; programs run side by side, and judges that can see all answers first do so."""
        for component in self._components.values():
            component.prefetch(pairs)
        if len(pairs) < 2 or not all(problem.kind == "code" for problem, _ in pairs):
            return [self.judge(*pair) for pair in pairs]
        with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="judge") as pool:
            return list(pool.map(lambda pair: self.judge(*pair), pairs))

    def check(self, problems: Sequence[Problem]) -> None:
        """Refuses, before any work, what could not be judged: DeviceError for tests of code where no sandbox holds, ConfigError for problems without
        a rule, or without tests, where a reward needs them."""
        if self.weights.keys() & {"accuracy", "code"} and any(problem.kind == "code" for problem in problems):
            _ = self._judges.tools.sandbox
        if "accuracy" in self.weights and all(problem.kind == "none" for problem in problems):
            raise ConfigError(
                "reward `accuracy` needs problems with an answer or tests, and none has one; use --reward model, or give answers"
            )

        if "code" in self.weights and not any(problem.kind == "code" for problem in problems):
            raise ConfigError("reward `code` needs problems with `tests`, and none has any; give tests, or leave the reward out")

    def close(self) -> None:
        """Ends the processes that judged."""
        self._judges.close()

    def counters(self) -> dict[str, dict[str, int]]:
        """For each component how often it failed or ran out of time, since the start."""
        return {name: {"failed": one.failed, "timed_out": one.timed_out} for name, one in self._components.items()}


class Guarded:
    """A component that cannot stop a run: what it raises, or does not say in time, becomes `unknown` and is counted.

    Components that run in this file's own code are called directly; one of the caller's own runs in a thread that is left behind when
    it hangs, and after three hangs it is not asked again.
    """

    def __init__(self, component: Component, seconds: float) -> None:
        self._component, self._seconds = component, seconds
        self._trusted = getattr(component, "__module__", "") == __name__
        self.failed = self.timed_out = 0

    def __call__(self, problem: Problem, answer: Answer) -> Outcome:
        if self.timed_out >= 3:
            return unknown("not asked again after three hangs")
        found: list[Outcome] = []

        def ask() -> None:
            try:
                found.append(_checked(self._component(problem, answer)))
            except Exception as error:  # whatever a judge raises is its own failure
                self.failed += 1
                found.append(unknown(f"{type(error).__name__}: {error}"[:200]))

        return found[0] if self._in_time(ask, self._seconds) else unknown(f"no word within {self._seconds:g} s")

    def prefetch(self, cases: Sequence[tuple[Problem, Answer]]) -> None:
        """Lets a component that takes many answers at once (reward_data.Batched) see them, in the time that it has for all; a failure is
        counted, and the calls that follow ask one by one."""
        fetch = getattr(self._component, "prefetch", None)
        if fetch is None or len(cases) < 2 or self.timed_out >= 3:
            return

        def ask() -> None:
            try:
                fetch(cases)
            except Exception:  # whatever a judge raises is its own failure
                self.failed += 1

        self._in_time(ask, self._seconds * len(cases))

    def _in_time(self, ask: Callable[[], None], seconds: float) -> bool:
        """Whether it came back; what did not is left behind and counted."""
        if self._trusted:
            ask()
            return True
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            self.timed_out += 1
            return False
        return True


def _checked(outcome: object) -> Outcome:
    if not isinstance(outcome, Outcome):
        raise TypeError(f"a reward gave {outcome!r}, not an Outcome")
    if outcome.verdict != "unknown" and not math.isfinite(outcome.value):
        raise ValueError(f"a reward gave the value {outcome.value}")
    return outcome


# ---------------------------------------------------------------------- components


def accuracy(problem: Problem, answer: Answer, judges: _Judges) -> Outcome:
    """Right or wrong by the rule of the problem's kind; the answer must stand behind the reasoning, whole."""
    if problem.kind == "none":
        return unknown("this problem has no rule to judge it by")
    if answer.cut or not answer.closed:
        return Outcome("wrong", 0.0, "cut" if answer.cut else "the reasoning was never closed")
    if problem.kind == "exact":
        return RIGHT if answer.content.strip() == (problem.answer or "").strip() else WRONG
    return judges.verdict(problem, answer.content)


def code(problem: Problem, answer: Answer, judges: _Judges) -> Outcome:
    """`accuracy` of problems that come with tests."""
    return accuracy(problem, answer, judges) if problem.kind == "code" else NOT_APPLICABLE


def format_reward(_problem: Problem, answer: Answer) -> Outcome:
    """Where the prompt asks for reasoning: one block, not empty, closed, and an answer behind it that opens no other.

    Elsewhere: an answer that is whole and has no stray reasoning tags. A prompt that leaves `<think>` open counts as its opening tag.
    """
    if answer.cut or not answer.closed or not answer.content.strip():
        return WRONG
    if "<think>" in answer.content or "</think>" in answer.content or "<think>" in answer.reasoning:
        return WRONG
    if answer.expects_reasoning and not answer.reasoning.strip():
        return WRONG
    return RIGHT


_SCRIPTS = {"en": ("LATIN",), "de": ("LATIN",), "fr": ("LATIN",), "es": ("LATIN",), "zh": ("CJK",), "ja": ("CJK", "HIRAGANA", "KATAKANA"),
            "ru": ("CYRILLIC",), "ar": ("ARABIC",), "ko": ("HANGUL",), "el": ("GREEK",), "hi": ("DEVANAGARI",)}  # fmt: skip
_FORMULA = re.compile(r"\\[A-Za-z]+|\$[^$]*\$|`[^`]*`")


def script_share(text: str, language: str) -> float:
    """Share of the letters of a text, formulas and code apart, that belong to the language's script; 0 where there are none."""
    if language not in _SCRIPTS:
        raise ConfigError(f"target_language ({language!r}) must be one of {', '.join(_SCRIPTS)}")
    letters = [c for c in _FORMULA.sub(" ", text) if c.isalpha()]
    wanted = _SCRIPTS[language]
    return sum(unicodedata.name(c, "").startswith(wanted) for c in letters) / len(letters) if letters else 0.0


def language(_problem: Problem, answer: Answer, target: str) -> Outcome:
    """Share of the reasoning (of the answer, where none was asked for) in the target language; 0 for an empty one."""
    share = script_share(answer.reasoning if answer.expects_reasoning else answer.content, target)
    return Outcome("right" if share > 0.5 else "wrong", share)


def length(_problem: Problem, answer: Answer, limit: int, buffer: int) -> Outcome:
    """0 up to limit - buffer tokens, then falling evenly to -1 at the limit; an answer that was cut gets -1."""
    over = len(answer.ids) - (limit - buffer)
    if answer.cut or (buffer == 0 and len(answer.ids) > limit):
        return Outcome("wrong", -1.0)
    return Outcome("right", 0.0) if over <= 0 else Outcome("wrong", -over / buffer)


# ---------------------------------------------------------------------- verdicts by kind


def maths(gold: str, content: str, seconds: float) -> Outcome:
    """The last box against the gold answer, by the checker of the evaluation: exact rationals, all else in a killable process (F38)."""
    found = checker.boxed(content)
    if not found:
        return Outcome("wrong", 0.0, "no \\boxed{} answer")
    said = checker.judge(gold, found, seconds)
    return RIGHT if said.word == "right" else WRONG if said.word == "wrong" else unknown(said.note)


_LETTER = re.compile(r"\(?([A-Z])\)?\.?")
_SAID = re.compile(r"^\W*(?:the )?(?:final |correct )?answer(?: is)?\W*?\(?([A-Z])\)?\W*$", re.IGNORECASE)


def choice(gold: str, content: str) -> Outcome:
    """The letter in the last box, or where there is no box the one of a last line that says which answer it is."""
    wanted = _LETTER.fullmatch(gold.strip())
    if wanted is None:
        return unknown(f"the gold answer ({gold!r}) is no letter")
    box = checker.boxed(content)
    found = _LETTER.fullmatch(box) if box is not None else _SAID.match((content.strip().splitlines() or [""])[-1])
    return RIGHT if found is not None and found[1].upper() == wanted[1] else WRONG


_FENCE = re.compile(r"^```[\w+-]*[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)


def last_code(content: str) -> str | None:
    """The last whole fenced block of a text."""
    found = _FENCE.findall(content)
    return str(found[-1]) if found else None


class _Judges:
    """What verdicts need beside the text, opened at first use and given back with the run: the sandbox, the grader process."""

    def __init__(self, seconds: float) -> None:
        from rorqual.eval.task import Tools

        self.tools, self._grader = Tools(seconds), grader.Grader(seconds)

    def close(self) -> None:
        """Ends the grader process."""
        self._grader.close()

    def verdict(self, problem: Problem, content: str) -> Outcome:
        """Right or wrong by the rule of the problem's kind."""
        gold = problem.answer or ""
        if problem.kind == "math":
            return maths(gold, content, self.tools.seconds)
        if problem.kind == "choice":
            return choice(gold, content)
        if problem.kind == "reasoning_gym":
            box = checker.boxed(content)
            score = self._grader.score(str(problem.data["task"]), content.strip() if box is None else box, dict(problem.data["entry"]))
            return RIGHT if score == 1.0 else WRONG
        program = last_code(content)
        if not program:
            return Outcome("wrong", 0.0, "no fenced block of code")
        from rorqual.eval.tasks.judges import run_code

        tests = problem.data["tests"]
        entry, context = (str(problem.data.get(name, "")) for name in ("entry_point", "context"))
        judged = run_code(
            program, tests if isinstance(tests, str) else "\n".join(map(str, tests)), self.tools, entry=entry, context=context
        )
        return unknown(judged.note) if judged.score is None else RIGHT if judged.score == 1 else WRONG
