"""DROP: numbers, dates and spans from a passage, by F1 over bags of words (Dua et al. 2019); 3 shots. The file is to be supplied. No torch.

Shots show the spans of the first answer with commas between. lm-evaluation-harness 0.4.13 shows the names of the answer's fields there, which
is no answer; without shots the prompts are equal.
"""

from __future__ import annotations

from typing import Any

from rorqual.eval.task import GenerationTask, Judgement, Row, Tools
from rorqual.eval.tasks.judges import drop_scores


def task(name: str) -> GenerationTask:
    """`drop`; the best of all validated answers counts, `em` stands beside the F1."""
    return GenerationTask(
        name=name, version=1, files=("drop/validation.jsonl", "drop/dev.jsonl", "drop.jsonl"),
        form="JSON lines with 'passage', 'question', 'answer' {number, date, spans} and 'validated_answers' (as lists or as columns)",
        fields=("passage", "question", "answer"), shots=3, shot_files=("drop/train.jsonl",), prepare=_prepare, target_delimiter="",
        question=lambda row: f"{row['passage']} {row['question']}", answer=lambda row: ",".join(row["answers"][0]), metric="f1", stop=(".",),
        max_tokens=64, judge=judge, row_id="query_id",
    )  # fmt: skip


def _prepare(row: Row) -> Row:
    other: Any = row.get("validated_answers") or []
    if isinstance(other, dict):  # columns
        other = [dict(zip(other, values, strict=True)) for values in zip(*other.values(), strict=True)]
    answers = list(dict.fromkeys(_spans(one) for one in [row["answer"], *other]))
    answers = [one for one in answers if any(span.strip() for span in one)]
    if not answers:
        raise ValueError("no answer has a number, a date or a span")
    return {"passage": row["passage"], "question": row["question"], "answers": [list(one) for one in answers]}


def _spans(answer: Row) -> tuple[str, ...]:
    if str(answer.get("number", "")) != "":
        return (str(answer["number"]),)
    if answer.get("spans"):
        return tuple(answer["spans"])
    date = answer.get("date") or {}
    return (" ".join(date.get(part, "") for part in ("day", "month", "year")).strip(),)


def judge(row: Row, text: str, tools: Tools) -> Judgement:
    """Best F1 over the answers; an empty text is unparseable."""
    if not text.strip():
        return Judgement(0.0, None, parts={"em": 0.0})
    found = [drop_scores(text, gold) for gold in row["answers"]]
    return Judgement(max(f1 for _, f1 in found), text.strip(), parts={"em": max(em for em, _ in found)})
