"""Natural Questions, open form: short answers without a document (Kwiatkowski et al. 2019); 5 shots. The file is to be supplied. No torch."""

from __future__ import annotations

from rorqual.eval.task import GenerationTask, Row
from rorqual.eval.tasks.judges import judge_exact


def task(name: str) -> GenerationTask:
    """`nq`: google-research-datasets/nq_open."""
    return GenerationTask(
        name=name, version=1, files=("nq/validation.jsonl", "nq_open/NQ-open.dev.jsonl", "nq_open.jsonl"),
        form="JSON lines with 'question' and 'answer' (a list of texts)", fields=("question", "answer"), shots=5,
        shot_files=("nq/train.jsonl", "nq_open/NQ-open.train.jsonl"), prepare=_prepare, description="Answer these questions:\n\n",
        delimiter="\n", question=lambda row: f"Q: {row['question']}?\nA:", answer=lambda row: row["answers"][0], stop=("\n", ".", ","),
        max_tokens=32, judge=judge_exact,
    )  # fmt: skip


def _prepare(row: Row) -> Row:
    answers = [row["answer"]] if isinstance(row["answer"], str) else list(row["answer"])
    if not answers:
        raise ValueError("'answer' is empty")
    return {"question": row["question"], "answers": answers}
