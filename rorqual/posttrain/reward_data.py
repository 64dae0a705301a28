"""Judged answers: what a reward model learns from, and the text in which it reads an answer (report section 5.2.1).

One object a line:

    {"messages": [...], "chosen": "...", "rejected": "..."}                      # "prompt" instead of "messages" too; answers as messages too
    {..., "reference": "42", "chosen_reasoning": "...", "rejected_reasoning": "..."}
    {..., "chosen_score": 8.5, "rejected_score": 6}                              # a gap of at most `min_gap` is left out
    {"messages": [...], "response": "...", "label": true, "reasoning": "..."}     # one answer alone, good or not

`reasoning` is a judge's, on the answer: it stands before the score, which is read where it ends. A candidate's lines are quoted with "> ",
so no answer can write a reference or a second answer of its own (reward hacking, families REW and EVAL of the field cases).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from rorqual.data import counters
from rorqual.errors import ConfigError, DataError, RorqualError
from rorqual.tokenizer import chat

if TYPE_CHECKING:
    from rorqual.posttrain.problems import Problem
    from rorqual.posttrain.rollout import Answer
    from rorqual.tokenizer.bpe import Tokenizer

SYSTEM = (
    "You judge an answer. Check whether it is right, whether it does what the question asks, and whether it is clear. Where a reference "
    "answer is given, the answer must agree with it. Reason first; the score comes after the reasoning."
)


@dataclass(frozen=True)
class Item:
    """An answer to judge. `reference` where there is a right one, `reasoning` where a judge has already thought about it."""

    question: str
    answer: str
    reference: str | None = None
    reasoning: str = ""


@dataclass(frozen=True)
class Case:
    """`items` are (better, worse) of a pair, or one answer whose `label` says whether it is good; `line` is its place in the file."""

    items: tuple[Item, ...]
    margin: float = 0.0
    label: bool | None = None
    line: int = 0


@dataclass
class Cases:
    """What a file gave; `rejected` counts the lines left out by reason, `examples` has the first line of each."""

    items: list[Case] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, int] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """Changes with any text, label or order."""
        return f"{counters.key(json.dumps([[[i.question, i.answer, i.reference, i.reasoning] for i in c.items] + [c.margin, c.label] for c in self.items])):016x}"

    def summary(self) -> str:
        """A sentence, and a line for each reason."""
        pairs = sum(len(case.items) == 2 for case in self.items)
        left = [f"  left out {count:,}: {reason} (line {self.examples[reason]})" for reason, count in self.rejected.most_common()]
        return "\n".join([f"{pairs:,} pairs and {len(self.items) - pairs:,} single answers", *left])


def read_cases(path: str | Path, min_gap: float = 1.0) -> Cases:
    """Reads a file of JSON lines; DataError for one that cannot be read or holds nothing to learn from."""
    file, found = Path(path), Cases()
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}; give a file of JSON lines") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.items.append(case_of(json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8")), min_gap, number))
        except (ValueError, RecursionError, RorqualError) as error:
            known = isinstance(error, RorqualError)
            reason = str(error)[:120] if known else "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON"
            found.rejected[reason] += 1
            found.examples.setdefault(reason, number)
    if not found.items:
        raise DataError(f"{file} holds nothing to learn from: {found.summary()}")
    return found


def case_of(raw: object, min_gap: float = 1.0, line: int = 0) -> Case:
    """One decoded line; DataError says what is wrong with it."""
    if not isinstance(raw, Mapping):
        raise DataError(f"a {type(raw).__name__} where an object was expected")
    reference = raw.get("reference")
    if isinstance(reference, int | float) and not isinstance(reference, bool):
        reference = str(reference)
    if reference is not None and (not isinstance(reference, str) or not reference.strip()):
        raise DataError("reference must be text or a number")
    if "response" in raw or "label" in raw:
        label = raw.get("label")
        if label not in (True, False):
            raise DataError("label must be true or false (or 1 or 0)")
        item = Item(_question(raw, raw.get("response")), _answer(raw.get("response"), "response"), reference, _text(raw, "reasoning"))
        return Case((item,), label=bool(label), line=line)
    chosen, rejected = (_answer(raw.get(name), name) for name in ("chosen", "rejected"))
    if chosen.strip() == rejected.strip():
        raise DataError("chosen and rejected are the same")
    scores: list[Any] = [raw.get(name) for name in ("chosen_score", "rejected_score")]
    if any(score is not None for score in scores):
        if not all(isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score) for score in scores):
            raise DataError("chosen_score and rejected_score must both be numbers")
        if scores[0] - scores[1] <= min_gap:
            raise DataError(f"the scores differ by at most {min_gap:g}")
    margin = raw.get("margin", 0.0)
    if not isinstance(margin, int | float) or isinstance(margin, bool) or not math.isfinite(margin) or margin < 0:
        raise DataError("margin must be a number of at least 0")
    question = _question(raw, raw.get("chosen"))
    return Case(
        (Item(question, chosen, reference, _text(raw, "chosen_reasoning")), Item(question, rejected, reference, _text(raw, "rejected_reasoning"))),
        float(margin), line=line,
    )  # fmt: skip


def _text(raw: Mapping[str, Any], name: str) -> str:
    value = raw.get(name) or ""
    if not isinstance(value, str):
        raise DataError(f"{name} must be text")
    return value.strip()


def _answer(value: object, name: str) -> str:
    """The text of an answer: a string, a message, or a conversation that ends with it."""
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        value = value[-1]
    if isinstance(value, Mapping):
        value = chat.check_message(value, 0)["content"]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{name} must be an answer with text")
    return value


def _question(raw: Mapping[str, Any], answer: object) -> str:
    turns: Any = raw.get("messages")
    if turns is None:
        turns = next((raw[name] for name in ("prompt", "question", "problem") if name in raw), None)
    if turns is None and isinstance(answer, Sequence) and not isinstance(answer, str):  # the conversation is part of the answers
        turns = list(answer)[:-1]
    if isinstance(turns, str):
        turns = [{"role": "user", "content": turns}]
    if not isinstance(turns, Sequence) or not turns:
        raise DataError("no messages and no prompt")
    return question_of(turns)


def question_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as one text; that of a single user turn is this turn."""
    checked = [chat.check_message(message, at) for at, message in enumerate(messages)]
    turns = [one for one in checked if one["content"].strip()]
    if not turns:
        raise DataError("no messages and no prompt")
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n".join(f"{one['role']}: {one['content']}" for one in turns)


def item_of(problem: Problem, answer: Answer) -> Item | None:
    """What is judged of a sampled answer: what stands behind its reasoning, with the gold answer; None where it is not whole."""
    if answer.cut or not answer.closed or not answer.content.strip():
        return None
    return Item(question_of(problem.messages), answer.content, problem.answer)


@runtime_checkable
class Batched(Protocol):
    """A reward component that is faster when it sees many answers at once, before it is called for each."""

    def prefetch(self, cases: Sequence[tuple[Problem, Answer]]) -> None:
        """Judges all of them. TeacherGone where the judge is a server that went away."""
        ...


# ---------------------------------------------------------------------- the text that is judged


def quoted(text: str) -> str:
    """Every line behind "> ", whatever ends it: text that cannot pass for what stands around it."""
    return "\n".join(f"> {line}" for line in text.splitlines() or [""])


def judging(item: Item, system: str = SYSTEM) -> list[dict[str, str]]:
    """The messages that show an answer to a judge."""
    parts = [f"Question:\n{quoted(item.question)}"]
    if item.reference is not None:
        parts.append(f"Reference answer:\n{quoted(item.reference)}")
    parts.append(f"Answer to judge:\n{quoted(item.answer)}")
    return [{"role": "system", "content": system}, {"role": "user", "content": "\n\n".join(parts)}]


@dataclass(frozen=True)
class Encoded:
    """Ids up to the token where the score is read; `reasoning` is the range of those that the judge writes itself, (0, 0) for none."""

    ids: list[int]
    reasoning: tuple[int, int] = (0, 0)


def encode(item: Item, tokenizer: Tokenizer, style: str, with_reasoning: bool) -> Encoded:
    """An item for the model. With reasoning the score is read at the end token behind it, without it where an answer would begin."""
    if style not in chat.STYLES:
        raise ConfigError(f"a reward model needs one of the chat styles {', '.join(chat.STYLES)}; this model's own template is another")
    turns: list[dict[str, str]] = judging(item)
    if not with_reasoning:
        return Encoded(chat.render(turns, tokenizer, style=style, thinking=False).ids)  # type: ignore[arg-type]
    if not item.reasoning:
        raise DataError("no reasoning before the score")
    turns.append({"role": "assistant", "content": item.reasoning})
    made = chat.render(turns, tokenizer, style=style, thinking=False, add_generation_prompt=False)  # type: ignore[arg-type]
    return Encoded(made.ids, next(iter(chat.learned(made))))


def held_out(case: Case, seed: int, share: float) -> bool:
    """Whether a case is for validation: decided by its question, so that no question is on both sides."""
    return counters.key(seed, "reward validation", case.items[0].question) < share * 2.0**64
