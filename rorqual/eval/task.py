"""What a benchmark is: where its rows lie, how a row becomes a prompt, how an answer is judged. Each file of tasks/ makes one or some. No torch.

A prompt is description + shots + question; a shot is question + target delimiter + answer, followed by the delimiter. Shots are the first
rows of the file for shots other than the item itself, or of the task's own examples; where a benchmark has no file for shots, of the
evaluated file itself. That is lm-evaluation-harness's first_n sampler, so at equal shots prompts are equal to its own byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from rorqual.errors import ConfigError, DataError
from rorqual.eval.data import Row, check_rows, find, read_rows

__all__ = [
    "Attempt",
    "ChoiceTask",
    "GenerationTask",
    "Item",
    "Judgement",
    "LastWordTask",
    "Row",
    "Task",
    "Tools",
    "prompts_hash",
    "template_hash",
]


@dataclass(frozen=True)
class Item:
    """One row made ready. `pairs` are (context, continuation)s to be scored, `prompt` a text to be continued; one of them is there."""

    id: str
    row: Row
    prompt: str = ""
    pairs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Judgement:
    """`score` from 0 to 1, None where it could not be decided (counted, never paid). `answer` is what was read, None if nothing could be."""

    score: float | None
    answer: str | None
    note: str = ""
    parts: dict[str, float] = field(default_factory=dict)
    """More scores of the same answer, by metric."""


@dataclass(frozen=True)
class Attempt:
    """A first answer that did not pass, and the prompt of the second one."""

    prompt: str


class Tools:
    """What judges may need beside the text: the sandbox, opened at first use, and the checkers' time limit in seconds.

    `wanted` keeps what programs of wanted values showed, by their text.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self._sandbox: Any = None
        self.wanted: dict[str, list[str]] = {}

    @property
    def sandbox(self) -> Any:
        """The sandbox for generated code; DeviceError where the machine has none that holds."""
        if self._sandbox is None:
            from rorqual.eval.sandbox import Sandbox

            self._sandbox = Sandbox()
        return self._sandbox


def _whole(row: Row) -> Row:
    return row


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all kinds share. `files` are places below the data folder, the first that exists is read; `form` says what it holds.

    `group` names a row's subject: its shots come from the same one. `prepare` rewrites a row after its `fields` were checked.
    """

    kind: ClassVar[str] = ""
    name: str
    version: int
    files: tuple[str, ...]
    form: str
    fields: tuple[str, ...]
    shots: int
    question: Callable[[Row], str]
    answer: Callable[[Row], str]
    description: Callable[[Row], str] | str = ""
    target_delimiter: str = " "
    delimiter: str = "\n\n"
    shot_files: tuple[str, ...] = ()
    examples: Callable[[Row], Sequence[Row]] | None = None
    shot: Callable[[Row], str] | None = None
    group: Callable[[Row], str] | None = None
    prepare: Callable[[Row], Row] = _whole
    read: Callable[[Path], list[Row]] | None = None
    row_id: str | None = None

    # ------------------------------------------------------------------ rows

    def rows(self, data: Path) -> list[Row]:
        """Checked and prepared rows, each with its id under "_id"; DataError says which file is needed, and in which form."""
        path = find(data, self.files)
        if path is None:
            raise DataError(f"task {self.name} needs {' or '.join(str(data / place) for place in self.files)}: {self.form}; put it there")
        return self._read(path)

    def shot_rows(self, data: Path) -> list[Row] | None:
        """Rows of the file for shots, None where there is none."""
        path = None if data.is_file() else find(data, self.shot_files)
        return None if path is None else self._read(path)

    def _read(self, path: Path) -> list[Row]:
        rows = (self.read or read_rows)(path)
        if not rows:
            raise DataError(f"{path} has no rows; task {self.name} needs {self.form}")
        ids = [str(number) if self.row_id is None else str(row.get(self.row_id, "")) for number, row in enumerate(rows)]
        check_rows(path, rows, self.fields, ids)
        out = []
        for number, (row, one) in enumerate(zip(rows, ids, strict=True), 1):
            try:
                out.append({**self.prepare(row), "_id": one})
            except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                raise DataError(f"{path}, row {number} has not the form of task {self.name} ({error}): {self.form}") from None
        return out

    # ------------------------------------------------------------------ prompts

    def items(self, data: Path, shots: int | None = None, limit: int | None = None) -> list[Item]:
        """Every item with its prompt, the first `limit` of them; ConfigError for more shots than there are rows for."""
        rows, count = self.rows(data), self.shots if shots is None else shots
        pool = (self.shot_rows(data) if count and self.examples is None else None) or rows
        groups: dict[str, list[Row]] = {}
        for row in pool:
            groups.setdefault(self.group(row) if self.group else "", []).append(row)
        out = []
        for row in rows[:limit]:
            chosen = self._chosen(row, count, groups, pool is rows)
            description = self.description if isinstance(self.description, str) else self.description(row)
            before = description + "".join(self.shown(one) + self.delimiter for one in chosen)
            out.append(self.item(row, before))
        return out

    def _chosen(self, row: Row, count: int, groups: dict[str, list[Row]], same_file: bool) -> list[Row]:
        if not count:
            return []
        if self.examples is not None:
            pool = list(self.examples(row))
        else:
            near = groups.get(self.group(row) if self.group else "", [])[: count + 1]
            pool = [one for one in near if not (same_file and one["_id"] == row["_id"])]
        if len(pool) < count:
            raise ConfigError(f"task {self.name} has {len(pool)} examples for shots and {count} are asked for; use --shots {len(pool)}")
        return pool[:count]

    def shown(self, row: Row) -> str:
        """A row as a shot."""
        if self.shot is not None:
            return self.shot(row)
        return self.question(row) + self.target_delimiter + self.answer(row)

    def item(self, row: Row, before: str) -> Item:
        """The item of a row after the text `before`: description and shots."""
        return Item(row["_id"], row, before + self.question(row))


@dataclass(frozen=True, kw_only=True)
class ChoiceTask(Task):
    """The most likely of several continuations; `contexts` where the choices differ before a common end instead (WinoGrande)."""

    kind: ClassVar[str] = "choices"
    options: Callable[[Row], Sequence[str]]
    gold: Callable[[Row], int]
    contexts: Callable[[Row], Sequence[str]] | None = None

    def item(self, row: Row, before: str) -> Item:
        delimiter = self.target_delimiter
        options = list(self.options(row))
        if self.contexts is not None:
            pairs = [(before + context, delimiter + end) for context, end in zip(self.contexts(row), options, strict=True)]
        else:
            pairs = [(before + self.question(row), delimiter + option) for option in options]
        if len(pairs) < 2 or not 0 <= self.gold(row) < len(pairs) or not all(option for option in options):
            raise DataError(
                f"task {self.name}, item {row['_id']}: {len(pairs)} choices, right one {self.gold(row)}; it needs two or more, none empty"
            )
        return Item(row["_id"], row, pairs=tuple(pairs))


@dataclass(frozen=True, kw_only=True)
class LastWordTask(Task):
    """Whether the given continuation is the greedy one, and its perplexity (LAMBADA)."""

    kind: ClassVar[str] = "continuation"

    def item(self, row: Row, before: str) -> Item:
        return Item(row["_id"], row, pairs=((before + self.question(row), self.target_delimiter + self.answer(row)),))


@dataclass(frozen=True, kw_only=True)
class GenerationTask(Task):
    """A continuation up to a stop string, and its judge. `metric` names the judge's score.

    `again` gives the second attempt after a first answer that did not pass, None where there is no second one. `runs_code` tasks need the
    sandbox before they start.
    """

    kind: ClassVar[str] = "generation"
    metric: str = "exact_match"
    stop: tuple[str, ...] = ()
    max_tokens: int = 256
    judge: Callable[[Row, str, Tools], Judgement]
    again: Callable[[Row, str, str, Judgement], Attempt | None] | None = None
    runs_code: bool = False


def template_hash(task: Task, items: Sequence[Item]) -> str:
    """SHA-256 of what makes prompts: name, version, delimiters, stops, and the first item's prompt with its shots."""
    first = [[item.prompt, *map(list, item.pairs)] for item in items[:1]]
    stops = task.stop if isinstance(task, GenerationTask) else ()
    return _digest([task.name, task.version, task.target_delimiter, task.delimiter, list(stops), first])


def prompts_hash(items: Iterable[Item]) -> str:
    """SHA-256 of every prompt and every id."""
    return _digest([[item.id, item.prompt, *map(list, item.pairs)] for item in items])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")).hexdigest()
