"""OpenBookQA, CommonsenseQA, COPA and simple arithmetic, as llm-foundry ships them: query, choices, gold. Not in the report. No torch."""

from __future__ import annotations

from rorqual.eval.task import ChoiceTask, LastWordTask, Row, Task

_FILES = {
    "openbookqa": "openbookqa/openbook_qa.jsonl",
    "commonsenseqa": "commonsenseqa/commonsense_qa.jsonl",
    "copa": "copa/copa.jsonl",
    "simple_arithmetic": "simple_arithmetic/simple_arithmetic_withspaces.jsonl",
}


def task(name: str) -> Task:
    """One of the four by its name."""
    if name == "simple_arithmetic":
        return LastWordTask(
            name=name, version=1, files=(_FILES[name],), form="JSON lines with 'context' and 'continuation'",
            fields=("context", "continuation"), shots=0, question=lambda row: row["context"], answer=lambda row: row["continuation"].strip(),
        )  # fmt: skip
    return ChoiceTask(
        name=name, version=1, files=(_FILES[name],), form="JSON lines with 'query', 'choices' and 'gold'",
        fields=("query", "choices", "gold"), shots=0, prepare=_prepare, question=lambda row: row["query"],
        answer=lambda row: row["choices"][row["gold"]], options=lambda row: row["choices"], gold=lambda row: row["gold"],
    )  # fmt: skip


def _prepare(row: Row) -> Row:
    return {"query": row["query"].strip(), "choices": row["choices"], "gold": int(row["gold"])}
