"""SVAMP: one-step maths in words with small twists (Patel et al. 2021); not in the report, 8 shots by default. No torch."""

from __future__ import annotations

from rorqual.eval.task import GenerationTask, Row
from rorqual.eval.tasks.judges import judge_number


def task(name: str) -> GenerationTask:
    """`svamp`; the last number of the answer counts."""
    return GenerationTask(
        name=name, version=1, files=("svamp/test.json", "svamp.json", "svamp.jsonl"), form="JSON (lines) with 'Body', 'Question', 'Answer' and 'ID'",
        fields=("Body", "Question", "Answer", "ID"), shots=8, shot_files=("svamp/train.json",), prepare=_prepare, row_id="ID",
        question=lambda row: f"Question: {row['question']}\nAnswer:", answer=lambda row: row["answer"], stop=("\n", "Question:"), max_tokens=64,
        judge=judge_number,
    )  # fmt: skip


def _prepare(row: Row) -> Row:
    body = row["Body"].strip()
    answer = float(row["Answer"])
    return {
        "question": f"{body}{'' if body.endswith(('.', '?', '!')) else '.'} {row['Question'].strip()}",
        "answer": str(int(answer)) if answer == int(answer) else str(answer),
    }
