"""Rows of the report's tables 3 and 6 without bundled data, through the generic tasks: where their files belong, and upstream's fields. No torch.

Shots are the report's. C-Eval, CMMLU and MMMLU: letters; `subject` is the subject's name in words, and groups the shots. RACE: one question a row,
its options' texts scored after article and question. C3, CCPM, CLUEWSC and CMRC as CLUE and THUNLP ship them, flattened to one question a row;
SimpleQA by exact match, since its own judge is a model.
"""

from __future__ import annotations

from typing import Any

from rorqual.eval.task import Row, Task
from rorqual.eval.tasks import generic

_ABCD = ["A", "B", "C", "D"]


def task(name: str) -> Task:
    """The task of that name."""
    files = (f"{name}/test.jsonl", f"{name}/val.jsonl", f"{name}.jsonl", f"{name}/test.parquet", f"{name}/test.csv")
    dev = (f"{name}/dev.jsonl", f"{name}/train.jsonl", f"{name}/dev.csv")
    fields: dict[str, Any]
    match name:
        case "race_middle" | "race_high":
            fields = {"question": "question", "choices": "options", "answer": "answer", "passage": "article"}
            return generic.multiple_choice(name, files, fields, 5, dev, letters=False, ask="", before="Article: ")
        case "ceval":
            fields = {"question": "question", "choices": _ABCD, "answer": "answer"}
            return generic.multiple_choice(name, files, fields, 5, dev, ask="答案：", description=_ceval, group="subject")
        case "cmmlu":
            fields = {"question": "Question", "choices": _ABCD, "answer": "Answer"}
            return generic.multiple_choice(name, files, fields, 5, dev, ask="答案：", description=_cmmlu, group="subject")
        case "mmmlu":
            fields = {"question": "Question", "choices": _ABCD, "answer": "Answer"}
            return generic.multiple_choice(name, files, fields, 5, dev, group="Subject")
        case "c3":
            fields = {"passage": "context", "question": "question", "choices": "choice", "answer": "answer"}
            return generic.multiple_choice(name, files, fields, 0, dev, letters=False, ask="答：")
        case "ccpm":
            fields = {"question": "translation", "choices": "choices", "answer": "answer"}
            return generic.multiple_choice(name, files, fields, 0, dev, letters=False, ask="对应的诗句：")
        case "cluewsc":
            return generic.answers("exact_match", name, files, {"question": "question", "answer": "answer"}, 5, dev, ask="答案：")
        case "cmrc":
            fields = {"passage": "context", "question": "question", "answer": "answers"}
            return generic.answers("exact_match", name, files, fields, 1, dev, ask="答案：")
        case "simpleqa":
            return generic.answers("exact_match", name, files, {"question": "problem", "answer": "answer"}, 0, dev)
        case _:  # aime
            fields = {"question": "problem", "answer": "answer"}
            return generic.answers("maths", name, files, fields, 0, dev, before="Question: ", stop=("Question:",), max_tokens=8192)


def _ceval(row: Row) -> str:
    return f"以下是中国关于{row['group']}的单项选择题，请选出其中的正确答案。\n\n"


def _cmmlu(row: Row) -> str:
    return f"以下是关于{row['group']}的单项选择题，请直接给出正确答案的选项。\n\n"
