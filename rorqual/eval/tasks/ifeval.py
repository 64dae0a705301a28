"""IFEval: instructions that a program can verify (Zhou et al. 2023), prompt level strict as in the report; no shots. No torch."""

from __future__ import annotations

from rorqual.errors import DataError
from rorqual.eval.checkers import instructions
from rorqual.eval.task import GenerationTask, Row
from rorqual.eval.tasks.judges import judge_instructions


def task(name: str) -> GenerationTask:
    """`ifeval`: `prompt_strict`, with `prompt_loose`, `instruction_strict` and `instruction_loose` beside it."""
    return GenerationTask(
        name=name, version=1, files=("ifeval/input_data.jsonl", "ifeval.jsonl"),
        form="JSON lines with 'key', 'prompt', 'instruction_id_list' and 'kwargs'", fields=("key", "prompt", "instruction_id_list", "kwargs"), shots=0,
        row_id="key", prepare=_prepare, question=lambda row: row["prompt"], answer=lambda row: "", metric="prompt_strict", max_tokens=1280,
        judge=judge_instructions,
    )  # fmt: skip


def _prepare(row: Row) -> Row:
    if len(row["instruction_id_list"]) != len(row["kwargs"]) or not row["kwargs"]:
        raise ValueError("'instruction_id_list' and 'kwargs' must be lists of one length, not empty")
    try:
        instructions.check(row["instruction_id_list"], row["kwargs"])
    except DataError as error:
        raise ValueError(str(error)) from None
    return row
