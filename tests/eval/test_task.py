"""Prompts byte by byte, shots that never hold the item itself, and rows that are refused by file and number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rorqual.errors import ConfigError, DataError
from rorqual.eval.task import ChoiceTask, GenerationTask, Judgement, LastWordTask, prompts_hash, template_hash


def _choice(**changes: Any) -> ChoiceTask:
    fields: dict[str, Any] = {
        "name": "c", "version": 1, "files": ("c.jsonl",), "form": "rows", "fields": ("q", "o", "g"), "shots": 1, "description": "Pick.\n\n",
        "question": lambda row: f"Q: {row['q']}\nA:", "answer": lambda row: row["o"][row["g"]], "options": lambda row: row["o"],
        "gold": lambda row: row["g"], "row_id": "id",
    }  # fmt: skip
    return ChoiceTask(**{**fields, **changes})


def _write(folder: Path, rows: list[dict[str, Any]], name: str = "c.jsonl") -> Path:
    (folder / name).write_text("\n".join(json.dumps(row) for row in rows))
    return folder


ROWS = [{"id": n, "q": f"q{n}", "o": ["x", "y"], "g": n % 2} for n in range(4)]


def test_prompt_bytes_with_a_shot_from_the_same_file(tmp_path):
    items = _choice().items(_write(tmp_path, ROWS))
    assert items[0].pairs == (("Pick.\n\nQ: q1\nA: y\n\nQ: q0\nA:", " x"), ("Pick.\n\nQ: q1\nA: y\n\nQ: q0\nA:", " y"))
    assert items[3].pairs[0][0] == "Pick.\n\nQ: q0\nA: x\n\nQ: q3\nA:"
    assert [item.id for item in items] == ["0", "1", "2", "3"]


def test_shots_come_from_their_own_file_and_subject(tmp_path):
    _write(tmp_path, ROWS)
    _write(tmp_path, [{"id": 8, "q": "odd", "o": ["x", "y"], "g": 1}, {"id": 9, "q": "even", "o": ["x", "y"], "g": 0}], "dev.jsonl")
    items = _choice(shot_files=("dev.jsonl",), group=lambda row: str(row["g"])).items(tmp_path)
    assert [item.pairs[0][0].split("\n")[2] for item in items] == ["Q: even", "Q: odd", "Q: even", "Q: odd"]
    with pytest.raises(ConfigError, match="has 1 examples for shots and 3 are asked for; use --shots 1"):
        _choice(shot_files=("dev.jsonl",), group=lambda row: str(row["g"])).items(tmp_path, shots=3)


def test_contexts_that_differ_before_a_common_end(tmp_path):
    task = _choice(question=lambda row: row["o"][row["g"]], answer=lambda row: "end.", contexts=lambda row: row["o"], options=lambda row: ["end."] * 2)  # fmt: skip
    assert task.items(_write(tmp_path, ROWS), shots=1)[2].pairs == (("Pick.\n\nx end.\n\nx", " end."), ("Pick.\n\nx end.\n\ny", " end."))


def test_last_word_and_generation(tmp_path):
    common: dict[str, Any] = {"version": 1, "files": ("c.jsonl",), "form": "rows", "fields": ("q",), "shots": 0, "answer": lambda row: "w", "question": lambda row: row["q"]}  # fmt: skip
    _write(tmp_path, ROWS)
    assert LastWordTask(name="l", **common).items(tmp_path, limit=1)[0].pairs == (("q0", " w"),)
    task = GenerationTask(name="g", judge=lambda row, text, tools: Judgement(1.0, text), **common)
    assert task.items(tmp_path, limit=1)[0].prompt == "q0"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": 0, "q": "", "o": []}], "row 1: field 'g' is missing"),
        ([ROWS[0], ROWS[0]], "row 2: id '0' is row 1's already"),
        ([{"id": 0, "q": "", "o": ["x", ""], "g": 0}], "none empty"),
        ([{"id": 0, "q": "", "o": ["x"], "g": 0}], "two or more"),
        ([{"id": 0, "q": "", "o": ["x", "y"], "g": 5}], "right one 5"),
        ([], "no rows"),
    ],
)
def test_rows_that_cannot_be_are_refused(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        _choice().items(_write(tmp_path, rows), shots=0)


def test_a_row_of_another_form_is_named(tmp_path):
    with pytest.raises(DataError, match=r"c.jsonl, row 1 has not the form of task c \('other'\): rows"):
        _choice(prepare=lambda row: {"other": row["other"]}).items(_write(tmp_path, ROWS))


def test_without_data_the_task_says_what_it_needs(tmp_path):
    with pytest.raises(DataError, match=r"task c needs .*c.jsonl: rows; put it there"):
        _choice().items(tmp_path)


def test_hashes_follow_prompts(tmp_path):
    _write(tmp_path, ROWS)
    items, other = _choice().items(tmp_path), _choice(description="Choose.\n\n").items(tmp_path)
    assert template_hash(_choice(), items) == template_hash(_choice(), _choice().items(tmp_path)) != template_hash(_choice(), other)
    assert prompts_hash(items) != prompts_hash(items[:3])
