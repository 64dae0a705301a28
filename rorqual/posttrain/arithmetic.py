r"""Worked arithmetic for fine-tuning and reinforcement learning, in sets that share no question.

The problems are those of the corpus (data.synthetic): a question, steps that are all true, an answer. As a conversation the steps become
the reasoning and the answer stands in \boxed{}, as the report asks of maths (section 5.2.1). A question's set is decided by its hash,
so what is learned by example, what is learned by reward and what is only measured never meet, whatever the seed and the count.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rorqual.data import synthetic
from rorqual.errors import ConfigError
from rorqual.train.rundir import write_atomic

Split = Literal["sft", "rl", "heldout"]
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
    exclude: Collection[str] = (),
) -> dict[str, Path]:  # fmt: skip
    """Writes sft.jsonl (conversations), rl.jsonl and heldout.jsonl (problems) of that many lines; {set: file}. `exclude` is kept from rl and heldout."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for split, count in zip(SPLITS, (sft, rl, heldout), strict=True):
        made = draw(split, count, seed=seed, kinds=kinds, max_digits=max_digits, exclude=() if split == "sft" else exclude)
        lines = [json.dumps(one.conversation() if split == "sft" else one.problem(), ensure_ascii=False) for one in made]
        files[split] = folder / f"{split}.jsonl"
        write_atomic(files[split], "\n".join(lines) + "\n")
    return files
