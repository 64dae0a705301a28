"""GSM8K: school maths in words (Cobbe et al. 2021); 8 shots in the report. No torch.

`exact_match` is strict: the first "#### NUMBER" of the answer, compared as text without commas, dollars and a last point, as
lm-evaluation-harness does. `flexible` takes the last number anywhere and compares values.
"""

from __future__ import annotations

import re

from rorqual.eval.task import GenerationTask, Judgement, Row, Tools
from rorqual.eval.tasks.numbers import last_number, same_number

_STRICT = re.compile(r"#### (-?[0-9.,]+)")


def task(name: str) -> GenerationTask:
    """`gsm8k`."""
    return GenerationTask(
        name=name, version=1, files=("gsm8k/test.jsonl", "gsm8k.jsonl"), form="JSON lines with 'question' and 'answer' that ends '#### NUMBER'",
        fields=("question", "answer"), shots=8, shot_files=("gsm8k/train.jsonl",), prepare=_prepare,
        question=lambda row: f"Question: {row['question']}\nAnswer:", answer=lambda row: row["answer"], stop=("Question:", "</s>", "<|im_end|>"),
        max_tokens=400, judge=judge,
    )  # fmt: skip


def _prepare(row: Row) -> Row:
    if "#### " not in row["answer"]:
        raise ValueError("'answer' has no '#### NUMBER'")
    return {"question": row["question"], "answer": row["answer"]}


def plain(text: str) -> str:
    """A number as it is compared: no commas and dollars, no final point."""
    return re.sub(r"\.$", "", re.sub(r"[,$]", "", text)).lower()


def judge(row: Row, text: str, tools: Tools) -> Judgement:
    """Strict verdict; `flexible` beside it."""
    gold = row["answer"].rpartition("#### ")[2]
    found = _STRICT.search(text)
    number = last_number(text)
    flexible = float(number is not None and same_number(number, gold))
    if found is None:
        return Judgement(0.0, None, parts={"flexible": flexible})
    return Judgement(float(plain(found[1]) == plain(gold)), found[1], parts={"flexible": flexible})
