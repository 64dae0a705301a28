"""Tasks that a user or a table describes: multiple choice, exact match and F1 over any file, by a field map. No torch.

A JSON file names one:  {"kind": "multiple_choice", "name": "my_exam", "file": "exam.jsonl", "shots": 5, "shot_file": "dev.jsonl",
"fields": {"question": "q", "choices": ["A", "B", "C", "D"], "answer": "key", "passage": "text"}, "ask": "Answer:"}
with kind "multiple_choice", "exact_match", "f1", "maths" or "needle". `choices` is one field with a list, or several fields with a text
each; `answer` a letter, a number from 0, the right text, or (not multiple choice) a text or a list of texts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rorqual.errors import ConfigError
from rorqual.eval.task import ChoiceTask, GenerationTask, Row, Task
from rorqual.eval.tasks import needle
from rorqual.eval.tasks.judges import judge_exact, judge_f1, judge_maths
from rorqual.eval.tasks.mmlu import LETTERS, question

KINDS = ("multiple_choice", "exact_match", "f1", "maths", "needle")
_KEYS = {"kind", "name", "file", "shots", "shot_file", "fields", "ask", "description", "stop", "max_tokens", "letters", "lengths", "depths", "id", "group"}  # fmt: skip


def from_file(path: Path) -> Task:
    """The task that a JSON file describes; ConfigError for what it leaves out or does not know."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is no task file ({error}); it must hold a JSON object with 'kind' ({', '.join(KINDS)}) and 'file'"
        ) from None
    if not isinstance(given, dict) or given.get("kind") not in KINDS or not isinstance(given.get("file"), str):
        raise ConfigError(f"{path}: a task file needs 'kind' ({', '.join(KINDS)}) and 'file'")
    unknown = sorted(set(given) - _KEYS)
    if unknown:
        raise ConfigError(f"{path}: {', '.join(unknown)} is not known in a task file; there are {', '.join(sorted(_KEYS))}")
    name = str(given.get("name", path.stem))
    if given["kind"] == "needle":
        return needle.made(name, (given["file"],), given.get("lengths", needle.LENGTHS), given.get("depths", needle.DEPTHS))
    files, shot_files = (given["file"],), (given["shot_file"],) if "shot_file" in given else ()
    common = {"ask": given.get("ask", "Answer:"), "description": given.get("description", ""), "row_id": given.get("id"), "group": given.get("group")}  # fmt: skip
    if given["kind"] == "multiple_choice":
        return multiple_choice(name, files, given.get("fields", {}), given.get("shots", 0), shot_files, letters=given.get("letters", True), **_checked(path, common))  # fmt: skip
    return answers(given["kind"], name, files, given.get("fields", {}), given.get("shots", 0), shot_files, stop=tuple(given.get("stop", ("\n",))), max_tokens=given.get("max_tokens", 64), **_checked(path, common))  # fmt: skip


def _checked(path: Path, common: dict[str, Any]) -> dict[str, Any]:
    for key, value in common.items():
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{path}: {key!r} holds {value!r}, a text is required")
    return common


def multiple_choice(
    name: str, files: tuple[str, ...], fields: Mapping[str, Any], shots: int, shot_files: tuple[str, ...] = (), *, letters: bool = True,
    ask: str = "Answer:", before: str = "", description: Callable[[Row], str] | str = "", row_id: str | None = None, group: str | None = None,
    form: str = "",
) -> ChoiceTask:  # fmt: skip
    """Scores letters after a list of choices (`letters`), or the choices' own texts after the question."""
    asked, choices, key, passage = (
        _field(name, fields, "question"),
        fields.get("choices"),
        _field(name, fields, "answer"),
        fields.get("passage"),
    )
    if not isinstance(choices, str | list) or not choices:
        raise ConfigError(f"task {name}: 'fields' needs 'choices', a field with a list or a list of fields")
    needed = (asked, key, *([choices] if isinstance(choices, str) else choices), *([passage] if passage else []))

    def prepare(row: Row) -> Row:
        texts = [str(one) for one in (row[choices] if isinstance(choices, str) else [row[field] for field in choices])]
        text = f"{row[passage]}\n\n{row[asked]}" if passage else str(row[asked])
        return {"text": text, "choices": texts, "gold": _gold(row[key], texts), "group": str(row.get(group, "")) if group else ""}

    return ChoiceTask(
        name=name, version=1, files=files, form=form or f"rows with {', '.join(needed)}", fields=needed, shots=shots, shot_files=shot_files,
        prepare=prepare, row_id=row_id, description=description, group=(lambda row: row["group"]) if group else None,
        question=lambda row: before + (question(row["text"], row["choices"], ask) if letters else f"{row['text']}\n{ask}" if ask else row["text"]),
        answer=lambda row: LETTERS[row["gold"]] if letters else row["choices"][row["gold"]],
        options=lambda row: LETTERS[: len(row["choices"])] if letters else row["choices"], gold=lambda row: row["gold"],
        target_delimiter=" " if letters or not ask.endswith("：") else "",
    )  # fmt: skip


def answers(
    kind: str, name: str, files: tuple[str, ...], fields: Mapping[str, Any], shots: int, shot_files: tuple[str, ...] = (), *,
    ask: str = "Answer:", before: str = "", description: str = "", stop: tuple[str, ...] = ("\n",), max_tokens: int = 64,
    row_id: str | None = None, group: str | None = None, form: str = "",
) -> GenerationTask:  # fmt: skip
    """Generated answers compared with one or several right ones: normalised equality, F1 of words, or values."""
    asked, key, passage = _field(name, fields, "question"), _field(name, fields, "answer"), fields.get("passage")
    needed = (asked, key, *([passage] if passage else []))

    def prepare(row: Row) -> Row:
        golds = [str(one) for one in (row[key] if isinstance(row[key], list) else [row[key]])]
        if not any(gold.strip() for gold in golds):
            raise ValueError(f"{key!r} is empty")
        text = f"{row[passage]}\n\n{row[asked]}" if passage else str(row[asked])
        return {"text": text, "answers": golds, "gold": golds[0], "group": str(row.get(group, "")) if group else ""}

    return GenerationTask(
        name=name, version=1, files=files, form=form or f"rows with {', '.join(needed)}", fields=needed, shots=shots, shot_files=shot_files,
        prepare=prepare, row_id=row_id, description=description, group=(lambda row: row["group"]) if group else None,
        question=lambda row: f"{before}{row['text']}\n{ask}", answer=lambda row: row["gold"], target_delimiter="" if ask.endswith("：") else " ",
        stop=stop, max_tokens=max_tokens, metric="f1" if kind == "f1" else "exact_match",
        judge={"exact_match": judge_exact, "f1": judge_f1, "maths": judge_maths}[kind],
    )  # fmt: skip


def _field(name: str, fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"task {name}: 'fields' needs {key!r}, the name of a field of its rows")
    return value


def _gold(value: Any, choices: Sequence[str]) -> int:
    """A letter, a number from 0, or the right choice's text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = str(value).strip()
    if text in choices:
        return list(choices).index(text)
    if len(text) == 1 and text.upper() in LETTERS:
        return LETTERS.index(text.upper())
    if text.isdecimal():
        return int(text)
    raise ValueError(f"the answer {text!r} is no letter, no number and none of the choices")
