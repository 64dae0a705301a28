"""CMath: Chinese primary-school maths in words (Wei et al. 2023); 3 shots in the report. No torch."""

from __future__ import annotations

from rorqual.eval.task import GenerationTask
from rorqual.eval.tasks.judges import judge_number


def task(name: str) -> GenerationTask:
    """`cmath`; the last number of the answer counts; of a percentage the number before its sign."""
    return GenerationTask(
        name=name, version=1, files=("cmath/test.jsonl", "cmath.jsonl"), form="JSON lines with 'question' and 'golden'", fields=("question", "golden"),
        shots=3, shot_files=("cmath/dev.jsonl",), prepare=lambda row: {"question": row["question"], "answer": str(row["golden"]).removesuffix("%")},
        question=lambda row: f"问题：{row['question']}\n答案：", answer=lambda row: row["answer"], target_delimiter="", stop=("问题：", "\n\n"),
        max_tokens=256, judge=judge_number,
    )  # fmt: skip
