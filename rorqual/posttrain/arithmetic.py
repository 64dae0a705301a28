r"""Worked arithmetic for fine-tuning and reinforcement learning, in sets that share no question.

The problems are those of the corpus (data.synthetic): a question, steps that are all true, an answer. As a conversation the steps become
the reasoning and the answer stands in \boxed{}, as the report asks of maths (section 5.2.1). A question's set is decided by its hash,
so what is learned by example, what is learned by reward and what is only measured never meet, whatever the seed and the count.

Sums can be worked "by places" instead of by columns: tens with tens, ones with ones, then the parts, so that every line adds two small
numbers. And a share of the examples can give the answer at once, without working: the two variants of the report's samples (section
5.1), of which reinforcement learning then has to find out which one pays.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rorqual.data import synthetic
from rorqual.errors import ConfigError
from rorqual.train.rundir import write_atomic

Split = Literal["sft", "rl", "heldout"]
Working = Literal["columns", "places"]
SPLITS: tuple[Split, ...] = ("sft", "rl", "heldout")
_SHARES = (60, 30, 10)  # per cent of all questions
KINDS = synthetic.KINDS
_PATIENCE = 20_000
"""Problems in a row without a new question after which there are no more."""


@dataclass(frozen=True)
class Worked:
    """A problem with its way of working."""

    kind: str
    question: str
    steps: tuple[str, ...]
    answer: str

    @property
    def largest(self) -> int:
        """Digits of the longest number in the question."""
        return max((len(number) for number in re.findall(r"\d+", self.question)), default=0)

    def conversation(self) -> dict[str, Any]:
        """One line of fine-tuning data: the steps as reasoning."""
        answer = {"role": "assistant", "reasoning_content": "\n".join(self.steps), "content": f"\\boxed{{{self.answer}}}"}
        return {"messages": [{"role": "user", "content": self.question}, answer]}

    def by_places(self) -> Worked:
        """A sum worked place by place from the highest: 70 + 50 = 120, 7 + 8 = 15, 120 + 15 = 135. ConfigError for other problems."""
        asked = re.fullmatch(r"What is (\d+) \+ (\d+)\?", self.question)
        if asked is None:
            raise ConfigError(f"{self.question!r} cannot be worked by places, only sums of two numbers can; use the kind 'addition' alone")
        a, b = int(asked[1]), int(asked[2])
        steps: list[str] = []
        so_far: int | None = None
        for place in reversed(range(max(len(asked[1]), len(asked[2])))):
            x, y = (number // 10**place % 10 * 10**place for number in (a, b))
            steps.append(f"{synthetic.PLACES[place]}: {x} + {y} = {x + y}")
            if so_far is not None:
                steps.append(f"{so_far} + {x + y} = {so_far + x + y}")
            so_far = x + y + (so_far or 0)
        return replace(self, steps=tuple(steps))

    def short(self) -> Worked:
        """The last step alone."""
        return replace(self, steps=self.steps[-1:])

    def problem(self) -> dict[str, Any]:
        """One line of a file of problems (posttrain.problems)."""
        return {
            "id": key_of(self.question),
            "messages": [{"role": "user", "content": self.question}],
            "answer": self.answer,
            "kind": "math",
        }


def key_of(question: str) -> str:
    """Sixteen hexadecimal digits that stand for a question."""
    return hashlib.blake2b(question.encode(), digest_size=8).hexdigest()


def split_of(question: str) -> Split:
    """The set that a question belongs to."""
    draw = int(key_of(question), 16) % 100
    return "sft" if draw < _SHARES[0] else "rl" if draw < _SHARES[0] + _SHARES[1] else "heldout"


def read_problem(kind: str, text: str) -> Worked:
    """A problem as the corpus writes it, taken apart."""
    question, *steps, answer = text.strip().split("\n")
    return Worked(kind, question.removeprefix("Question: "), tuple(steps), answer.removeprefix("Answer: \\boxed{").removesuffix("}"))


def questions_of(seed: int, count: int) -> set[str]:
    """Questions of the first `count` documents of a seed: what a corpus has shown already."""
    texts = (text for document in synthetic.documents(seed, count) for text in document.split("\n\n"))
    return {read_problem("", text).question for text in texts}


def draw(
    split: Split, count: int, *, seed: int = 0, kinds: Collection[str] = KINDS, max_digits: int = 5, exclude: Collection[str] = ()
) -> list[Worked]:  # fmt: skip
    """`count` different problems of a set, in an order of the seed; `exclude` are questions to leave out.

    ConfigError where the kinds and digits asked for have fewer.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if split not in SPLITS or unknown or not kinds:
        raise ConfigError(
            f"split ({split!r}) must be one of {', '.join(SPLITS)}, kinds ({', '.join(unknown) or 'none'}) of {', '.join(KINDS)}"
        )
    found: dict[str, Worked] = {}
    index = waited = 0
    while len(found) < count:
        one = read_problem(*synthetic.problem(seed, index, tuple(kinds), max_digits))
        new = one.largest <= max_digits and one.question not in exclude and one.question not in found and split_of(one.question) == split
        if new:
            found[one.question] = one
        index, waited = index + 1, 0 if new else waited + 1
        if waited > _PATIENCE:
            raise ConfigError(
                f"only {len(found)} different questions of {', '.join(kinds)} with numbers of at most {max_digits} digits in the set {split!r}, {count} were asked for; ask for fewer, or allow more kinds or digits"
            )
    return list(found.values())


def write_sets(
    folder: str | Path, *, sft: int, rl: int, heldout: int, seed: int = 0, kinds: Collection[str] = KINDS, max_digits: int = 5,
    exclude: Collection[str] = (), working: Working = "columns", short_percent: int = 0,
) -> dict[str, Path]:  # fmt: skip
    """Writes sft.jsonl (conversations), rl.jsonl and heldout.jsonl (problems) of that many lines; {set: file}. `exclude` is kept from rl and heldout.

    Examples are worked as `working` says, but about `short_percent` of 100, chosen by their question's hash, have only the last step.
    """
    if not 0 <= short_percent <= 100:
        raise ConfigError(f"short_percent ({short_percent}) must lie between 0 and 100")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for split, count in zip(SPLITS, (sft, rl, heldout), strict=True):
        made = draw(split, count, seed=seed, kinds=kinds, max_digits=max_digits, exclude=() if split == "sft" else exclude)
        if split == "sft":
            made = [_example(one, working, short_percent) for one in made]
        lines = [json.dumps(one.conversation() if split == "sft" else one.problem(), ensure_ascii=False) for one in made]
        files[split] = folder / f"{split}.jsonl"
        write_atomic(files[split], "\n".join(lines) + "\n")
    return files


def _example(one: Worked, working: Working, short_percent: int) -> Worked:
    if int(key_of(one.question), 16) // 100 % 100 < short_percent:  # the last two digits decide the set
        return one.short()
    return one.by_places() if working == "places" else one
