"""MGSM: GSM8K's first 250 questions in eleven languages (Shi et al. 2022), answers without reasoning; 8 shots. No torch.

Without a file of the language's own examples the shots are the first questions of the file itself, other than the item.
"""

from __future__ import annotations

from pathlib import Path

from rorqual.eval.data import Row, read_rows
from rorqual.eval.task import GenerationTask
from rorqual.eval.tasks.judges import judge_number

_WORDS = {
    "bn": ("প্রশ্ন: ", "Answer:"), "de": ("Frage: ", "Antwort:"), "en": ("Question: ", "Answer:"), "es": ("Pregunta: ", "Respuesta:"),
    "fr": ("Question : ", "Réponse :"), "ja": ("問題： ", "Answer:"), "ru": ("Задача: ", "Answer:"), "sw": ("Swali: ", "Answer:"),
    "te": ("ప్రశ్న: ", "Answer:"), "th": ("โจทย์: ", "Answer:"), "zh": ("问题： ", "Answer:"),
}  # fmt: skip


def task(name: str) -> GenerationTask:
    """`mgsm_LANGUAGE`; the last number of the answer counts."""
    language = name.removeprefix("mgsm_")
    ask, answer = _WORDS[language]
    return GenerationTask(
        name=name, version=1, files=(f"mgsm/mgsm_{language}.tsv", f"mgsm_{language}.tsv"),
        form="lines of question, tab, number", fields=("question", "answer"), shots=8, shot_files=(f"mgsm/mgsm_{language}_train.tsv",), read=_read,
        question=lambda row: f"{ask}{row['question']}\n{answer}", answer=lambda row: row["answer"], target_delimiter="",
        stop=(ask.strip(), "</s>", "<|im_end|>"), max_tokens=64, judge=judge_number,
    )  # fmt: skip


def _read(path: Path) -> list[Row]:
    rows = read_rows(path, ("question", "answer"))
    return [{**row, "answer": row["answer"].replace(",", "")} for row in rows]
