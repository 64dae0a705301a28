"""ARC, Easy and Challenge: grade-school science questions with three to five answers (Clark et al. 2018); 25 shots in the report. No torch."""

from __future__ import annotations

from rorqual.eval.task import ChoiceTask, Row


def task(name: str) -> ChoiceTask:
    """`arc_easy` or `arc_challenge`."""
    return ChoiceTask(
        name=name, version=1, files=(f"arc/{name}.jsonl", f"{name}.jsonl", f"arc/{name}.parquet"),
        form="JSON lines with 'query' (begins 'Question: '), 'choices' and 'gold', or upstream's 'question', 'choices' {text, label}, 'answerKey'",
        fields=(), shots=25, shot_files=(f"arc/{name}_train.jsonl", f"{name}_train.jsonl"), prepare=_prepare,
        question=lambda row: f"Question: {row['question']}\nAnswer:", answer=lambda row: row["choices"][row["gold"]],
        options=lambda row: row["choices"], gold=lambda row: row["gold"],
    )  # fmt: skip


def _prepare(row: Row) -> Row:
    if "answerKey" in row:
        choices = row["choices"]
        return {"question": row["question"], "choices": choices["text"], "gold": list(choices["label"]).index(row["answerKey"])}
    return {"question": row["query"].removeprefix("Question: "), "choices": row["choices"], "gold": int(row["gold"])}
