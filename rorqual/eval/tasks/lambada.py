"""LAMBADA: the last word of a passage, which must be the greedy continuation; its perplexity too (Paperno et al. 2016). No torch."""

from __future__ import annotations

from rorqual.eval.task import LastWordTask, Row


def task(name: str) -> LastWordTask:
    """`lambada`: OpenAI's split, whose rows are whole passages ("text") or passage and last word apart."""
    return LastWordTask(
        name=name, version=1, files=("lambada/lambada_openai.jsonl", "lambada_openai.jsonl", "lambada.jsonl"),
        form="JSON lines with 'context' and 'continuation', or with 'text'", fields=(), shots=0, prepare=_prepare,
        question=lambda row: row["context"], answer=lambda row: row["word"],
    )  # fmt: skip


def _prepare(row: Row) -> Row:
    if "text" in row:
        context, _, word = row["text"].rpartition(" ")
    else:
        context, word = row["context"], row["continuation"].strip()
    if not word:
        raise ValueError("the last word is empty")
    return {"context": context, "word": word}
