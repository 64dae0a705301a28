"""HellaSwag: which of four endings follows (Zellers et al. 2019); 10 shots in the report. The file is to be supplied. No torch."""

from __future__ import annotations

import re

from rorqual.eval.task import ChoiceTask, Row


def task(name: str) -> ChoiceTask:
    """`hellaswag`, upstream's validation file."""
    return ChoiceTask(
        name=name, version=1, files=("hellaswag/hellaswag_val.jsonl", "hellaswag_val.jsonl", "hellaswag.jsonl"),
        form="JSON lines with 'activity_label', 'ctx_a', 'ctx_b', 'endings' and 'label'",
        fields=("activity_label", "ctx_a", "ctx_b", "endings", "label"), shots=10,
        shot_files=("hellaswag/hellaswag_train.jsonl", "hellaswag_train.jsonl"), prepare=_prepare,
        question=lambda row: row["query"], answer=lambda row: row["choices"][row["gold"]], options=lambda row: row["choices"],
        gold=lambda row: row["gold"],
    )  # fmt: skip


def _prepare(row: Row) -> Row:
    context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {
        "query": clean(f"{row['activity_label']}: {context}"),
        "choices": [clean(end) for end in row["endings"]],
        "gold": int(row["label"]),
    }


def clean(text: str) -> str:
    """Without the marks that WikiHow's pages left: "[title]" ends a sentence, other brackets go, of two spaces one stays."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
