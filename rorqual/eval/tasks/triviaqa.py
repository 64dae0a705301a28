"""TriviaQA: a trivia question, any of the answer's aliases counts (Joshi et al. 2017); 5 shots in the report. No torch.

Upstream's questions end in "?", and lm-evaluation-harness puts another one behind it; so do these prompts, to be equal to its own.
"""

from __future__ import annotations

from rorqual.eval.task import GenerationTask, Row
from rorqual.eval.tasks.judges import judge_trivia


def task(name: str) -> GenerationTask:
    """`triviaqa`, without the documents."""
    return GenerationTask(
        name=name, version=1, files=("triviaqa/validation.jsonl", "triviaqa_sub/triviaqa_sm_sub.jsonl", "triviaqa.jsonl"),
        form="JSON lines with 'context' ('Question: ...\\nAnswer:') and 'aliases', or upstream's 'question' and 'answer' {value, aliases}",
        fields=(), shots=5, shot_files=("triviaqa/train.jsonl",), prepare=_prepare, question=lambda row: f"Question: {row['question']}?\nAnswer:",
        answer=lambda row: row["answers"][0], stop=("\n", ".", ","), max_tokens=32, judge=judge_trivia,
    )  # fmt: skip


def _prepare(row: Row) -> Row:
    if "context" in row:
        question = row["context"].removeprefix("Question: ").removesuffix("\nAnswer:")
        answers = [*row["aliases"], row["answer"]]
    else:
        question, answers = row["question"], [*row["answer"]["aliases"], row["answer"]["value"]]
    return {"question": question, "answers": list(dict.fromkeys(answers))}
