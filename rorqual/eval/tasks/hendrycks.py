"""MATH (Hendrycks et al. 2021) with 4 shots, and MATH-500 without. Files are to be supplied. No torch.

The answer is what stands in the last \\boxed{} of the text; a base model's "final answer is $...$" counts where there is no box. Values are
compared by `math-verify` in a killable process.

The report gives the number of shots (4), not the examples. They are the first four rows of the user's file of training problems, solutions as the
data set has them. lm-eval's `minerva_math` has four fixed examples instead, with solutions rewritten to end in a sentence of their own, and
those texts are not part of this package: `rorqual eval DIR --harness lm-eval --tasks minerva_math` asks with them. A file of four rows of one's
own choice as math/train.jsonl makes other shots; the hash of the prompts in the result tells which were used.
"""

from __future__ import annotations

from rorqual.eval.task import GenerationTask, Row
from rorqual.eval.tasks.judges import boxed, judge_maths


def task(name: str) -> GenerationTask:
    """`math` or `math_500`."""
    few = name == "math"
    files = ("math/test.jsonl", "hendrycks_math/test.jsonl") if few else ("math_500/test.jsonl", "MATH-500/test.jsonl")
    return GenerationTask(
        name=name, version=1, files=files, form="JSON lines with 'problem' and 'solution' (its answer in \\boxed{}), or with 'problem' and 'answer'",
        fields=("problem",), shots=4 if few else 0, shot_files=("math/train.jsonl", "hendrycks_math/train.jsonl"), prepare=_prepare,
        question=lambda row: f"Problem:\n{row['problem']}\n\nSolution:", answer=lambda row: row["solution"], stop=("Problem:",),
        max_tokens=1024 if few else 4096, judge=judge_maths,
    )  # fmt: skip


def _prepare(row: Row) -> Row:
    gold = row.get("answer") or boxed(row["solution"])
    if not gold:
        raise ValueError("'solution' has no \\boxed{} answer and there is no 'answer'")
    return {"problem": row["problem"], "solution": row.get("solution") or str(gold), "gold": str(gold)}
