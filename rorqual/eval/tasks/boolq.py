"""BoolQ: a yes-or-no question about a passage (Clark et al. 2019); not in the report, no shots by default. No torch."""

from __future__ import annotations

from rorqual.eval.task import ChoiceTask, Row


def task(name: str) -> ChoiceTask:
    """`boolq`."""
    return ChoiceTask(
        name=name, version=1, files=("boolq/boolq.jsonl", "boolq.jsonl"),
        form="JSON lines with 'query' (passage and question), 'choices' (no, yes) and 'gold', or 'passage', 'question' and 'answer' or 'label'",
        fields=(), shots=0, shot_files=("boolq/boolq_train.jsonl",), prepare=_prepare,
        question=lambda row: f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", answer=lambda row: ("no", "yes")[row["gold"]],
        options=lambda row: ("no", "yes"), gold=lambda row: row["gold"],
    )  # fmt: skip


def _prepare(row: Row) -> Row:
    if "passage" in row:
        return {"passage": row["passage"], "question": row["question"], "gold": int(row["answer"] if "answer" in row else row["label"])}
    passage, mark, question = row["query"].removeprefix("Passage: ").rpartition("\nQuestion: ")
    if not mark:
        raise ValueError("'query' has no line that begins with 'Question: '")
    return {"passage": passage, "question": question.strip().removesuffix("?"), "gold": int(row["gold"])}
