"""MBPP: short Python functions from a sentence and three assertions (Austin et al. 2021); 3 shots, pass@1. No torch.

Items are task ids 11 to 510, the shots 2, 3 and 4, as the dataset divides itself; a file without these ids is taken whole.
"""

from __future__ import annotations

from pathlib import Path

from rorqual.eval.data import Row, read_rows
from rorqual.eval.grade import entry_of
from rorqual.eval.task import GenerationTask, Judgement, Tools
from rorqual.eval.tasks.judges import completion, run_code

SHOTS = (2, 3, 4)


def task(name: str) -> GenerationTask:
    """`mbpp`."""
    return GenerationTask(
        name=name, version=1, files=("mbpp/mbpp.jsonl", "mbpp.jsonl"), form="JSON lines with 'task_id', 'text', 'code' and 'test_list'",
        fields=("task_id", "text", "code", "test_list"), shots=3, read=_read, row_id="task_id", question=_question,
        answer=lambda row: f"{row['code']}\n[DONE]", target_delimiter="", examples=lambda row: row["examples"], metric="pass@1",
        stop=("[DONE]",), max_tokens=512, judge=judge, runs_code=True,
    )  # fmt: skip


def _question(row: Row) -> str:
    tests = "\n".join(row["test_list"][:3])
    return f"You are an expert Python programmer, and here is your task: {row['text']} Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"


def _read(path: Path) -> list[Row]:
    rows = read_rows(path)
    known = {row.get("task_id"): row for row in rows}
    examples = [known[number] for number in SHOTS if number in known] or rows[:3]
    chosen = [row for row in rows if isinstance(row.get("task_id"), int) and 11 <= row["task_id"] <= 510] or rows
    return [{**row, "examples": examples} for row in chosen]


def judge(row: Row, text: str, tools: Tools) -> Judgement:
    """Whether every assertion holds; code may stand in a fence."""
    body, _ = completion(text, "")
    if not body.strip():
        return Judgement(0.0, None)
    tests = "\n".join([row.get("test_setup_code") or "", *row["test_list"], *row.get("challenge_test_list", [])])
    return run_code(body, tests, tools, entry=entry_of(row["code"], tests))
