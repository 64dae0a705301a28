"""GPQA: graduate questions with one right and three wrong answers (Rein et al. 2023); no shots. The file is to be supplied. No torch.

The four answers stand in an order that depends on the question's text alone, so every run sees the same one.
"""

from __future__ import annotations

import hashlib

from rorqual.eval.task import ChoiceTask, Row

LETTERS = ("(A)", "(B)", "(C)", "(D)")
_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def task(name: str) -> ChoiceTask:
    """`gpqa`, upstream's file, of which the report uses the diamond part."""
    return ChoiceTask(
        name=name, version=1, files=("gpqa/gpqa_diamond.csv", "gpqa_diamond.csv", "gpqa/test.jsonl", "gpqa.jsonl"),
        form=f"CSV or JSON lines with 'Question', 'Correct Answer', {', '.join(map(repr, _WRONG))}", fields=("Question", "Correct Answer", *_WRONG), shots=0,
        prepare=_prepare, question=_question, answer=lambda row: LETTERS[row["gold"]], options=lambda row: LETTERS, gold=lambda row: row["gold"],
    )  # fmt: skip


def _prepare(row: Row) -> Row:
    texts = [clean(row[key]) for key in (*_WRONG, "Correct Answer")]
    if texts[3] in texts[:3]:
        raise ValueError("the right answer is one of the wrong ones too")
    question = row["Question"]
    order = sorted(range(4), key=lambda place: hashlib.blake2b(f"{question}\0{place}".encode(), digest_size=8).digest())
    return {"question": question, "choices": [texts[place] for place in order], "gold": order.index(3)}


def clean(text: str) -> str:
    """Without white space around it, of two spaces one stays."""
    return text.strip().replace(" [title]", ". ").replace("  ", " ")


def _question(row: Row) -> str:
    lines = [f"{letter} {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=True)]
    return "\n".join([f"What is the correct answer to this question:{row['question']}", "Choices:", *lines, "Answer:"])
