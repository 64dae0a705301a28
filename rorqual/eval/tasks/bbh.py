"""BIG-Bench Hard: 27 tasks with three worked examples each (Suzgun et al. 2022), in the order and words of the files themselves. No torch."""

from __future__ import annotations

from pathlib import Path

from rorqual.errors import DataError
from rorqual.eval.data import read_rows
from rorqual.eval.task import GenerationTask, Judgement, Row, Tools

_ASK = "A: Let's think step by step.\n"


def task(name: str) -> GenerationTask:
    """`bbh_NAME`: questions in NAME.json, the description and the examples in NAME.txt beside it."""
    own = name.removeprefix("bbh_")
    return GenerationTask(
        name=name, version=1, files=(f"bbh/{own}.json", f"{own}.json"),
        form='{"examples": [{"input", "target"}]}, and the worked examples in a text file of the same name with the ending .txt',
        fields=("input", "target"), shots=3, read=_read, description=lambda row: row["about"], question=lambda row: f"Q: {row['input']}\n{_ASK}",
        answer=lambda row: row["target"], target_delimiter="", examples=lambda row: row["examples"], stop=("</s>", "Q:", "\n\n"),
        max_tokens=1024, judge=judge,
    )  # fmt: skip


def _read(path: Path) -> list[Row]:
    prompt = path.with_suffix(".txt")
    if not prompt.is_file():
        raise DataError(f"{prompt} is missing: the description and three worked examples that belong to {path.name}; put it there")
    about, examples = worked(prompt.read_text(encoding="utf-8"))
    return [{**row, "about": about, "examples": examples} for row in read_rows(path)]


def worked(text: str) -> tuple[str, list[Row]]:
    """(description, examples) of a prompt file; what stands above its line of dashes is no part of it."""
    _, _, body = text.rpartition("-----\n")
    about, *parts = body.strip("\n").split("\n\nQ: ")
    examples = []
    for part in parts:
        question, mark, answer = part.partition("\n" + _ASK.rstrip())
        if mark:
            examples.append({"input": question, "target": answer.strip()})
    return about + "\n\n", examples


def judge(row: Row, text: str, tools: Tools) -> Judgement:
    """What follows the last "answer is" of the line, without its final point, must be the target exactly."""
    _, mark, said = text.rpartition("answer is ")
    answer = said.partition("\n")[0].strip().removesuffix(".").strip()
    if not mark or not answer:
        return Judgement(0.0, None)
    return Judgement(float(answer == row["target"].strip()), answer)
