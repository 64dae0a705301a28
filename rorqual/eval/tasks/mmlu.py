"""MMLU, MMLU-Redux and MMLU-Pro by the likelihood of the right letter (report section 4.4.1); 5 shots of the same subject. No torch.

MMLU-Redux (Gema et al. 2024): rows whose `error_type` is "ok". MMLU-Pro (Wang et al. 2024): up to ten choices; the report scores letters,
while the benchmark's authors let the model reason first.
"""

from __future__ import annotations

from pathlib import Path

from rorqual.eval.data import read_rows
from rorqual.eval.task import ChoiceTask, Row

LETTERS = "ABCDEFGHIJ"


def task(name: str) -> ChoiceTask:
    """`mmlu`, `mmlu_redux` or `mmlu_pro`."""
    if name == "mmlu_pro":
        files: tuple[str, ...] = ("mmlu_pro/test.jsonl", "mmlu_pro/test.parquet")
        form = "rows with 'question', 'options' (up to ten), 'answer' (a letter) and 'category'"
    else:
        files = (f"{name}/test.jsonl", f"{name}/test.parquet", *(("mmlu_stem/test.jsonl",) if name == "mmlu" else ()))
        form = "rows with 'question', 'choices' or 'options' (four), 'answer' (a letter or 0 to 3) and 'subject' or 'topic'"
    return ChoiceTask(
        name=name, version=1, files=files, form=form, fields=("question", "answer"), shots=5, prepare=_prepare, read=_read,
        shot_files=(f"{name}/dev.jsonl", f"{name}/dev.parquet", f"{name}/validation.jsonl"),
        description=lambda row: f"The following are multiple choice questions (with answers) about {row['subject'].replace('_', ' ')}.\n\n",
        question=lambda row: question(row["question"], row["choices"]), answer=lambda row: LETTERS[row["gold"]],
        options=lambda row: LETTERS[: len(row["choices"])], gold=lambda row: row["gold"], group=lambda row: row["subject"],
    )  # fmt: skip


def question(text: str, choices: list[str], ask: str = "Answer:") -> str:
    """A question with lettered choices."""
    lines = [text.strip(), *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)), ask]
    return "\n".join(lines)


def _read(path: Path) -> list[Row]:
    return [row for row in read_rows(path) if row.get("error_type", "ok") == "ok"]


def _prepare(row: Row) -> Row:
    choices = [str(one) for one in (row["choices"] if "choices" in row else row["options"])]
    answer = row["answer"]
    gold = answer if isinstance(answer, int) else LETTERS.index(answer.strip())
    subject = row.get("subject") or row.get("topic") or row.get("category") or ""
    return {"question": row["question"], "choices": choices, "gold": gold, "subject": subject}
