"""PIQA: which of two ways reaches an everyday goal (Bisk et al. 2019); no shots in the report. No torch."""

from __future__ import annotations

from rorqual.eval.task import ChoiceTask, Row


def task(name: str) -> ChoiceTask:
    """`piqa`."""
    return ChoiceTask(
        name=name, version=1, files=("piqa/piqa.jsonl", "piqa.jsonl"),
        form="JSON lines with 'query', 'choices' and 'gold', or upstream's 'goal', 'sol1', 'sol2', 'label'", fields=(), shots=0,
        shot_files=("piqa/piqa_train.jsonl",), prepare=_prepare, question=lambda row: f"Question: {row['goal']}\nAnswer:",
        answer=lambda row: row["choices"][row["gold"]], options=lambda row: row["choices"], gold=lambda row: row["gold"],
    )  # fmt: skip


def _prepare(row: Row) -> Row:
    if "goal" in row:
        return {"goal": row["goal"], "choices": [row["sol1"], row["sol2"]], "gold": int(row["label"])}
    goal = row["query"].removeprefix("Question: ").removesuffix("\n")
    return {"goal": goal, "choices": row["choices"], "gold": int(row["gold"])}
