"""What a run leaves: one JSON file, and until it is whole the records so far in a file beside it, from which a killed run goes on. No torch.

OUT.json            written once, at the end, atomically
OUT.json.partial    one line of facts about the run, then one line per finished item; a line that was cut short is dropped; stays where
                    items failed, so that the same command asks for these again
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from rorqual.errors import DataError, RunError
from rorqual.eval.metrics import Estimate

FORMAT = "rorqual-eval-1"


def partial(out: Path) -> Path:
    """Where the records of an unfinished run lie."""
    return out.with_name(out.name + ".partial")


class Progress:
    """Records of a run under way, by task and item id; `put` is on disk when it returns. Use it as a context manager.

    `facts` decide what the records mean (model, settings, prompts); RunError where the file is of other facts.
    """

    def __init__(self, out: Path, facts: dict[str, Any]) -> None:
        self.path = partial(out)
        self._facts = json.loads(json.dumps(facts))
        self.records: dict[str, dict[str, dict[str, Any]]] = {}
        self._file: IO[str] | None = None

    def __enter__(self) -> Progress:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(encoding="utf-8").split("\n") if self.path.exists() else []
        whole = [value for line in lines if (value := _object(line)) is not None]
        if whole and whole[0] != {"facts": self._facts}:
            before = whole[0].get("facts", {})
            other = sorted(key for key in {*before, *self._facts} if before.get(key) != self._facts.get(key))
            raise RunError(
                f"{self.path} holds a run that differs in {', '.join(other) or 'its form'}; finish that one, name another --out, or delete the file"
            )
        for value in whole[1:]:
            self.records.setdefault(value["task"], {})[value["record"]["id"]] = value["record"]
        temporary = self.path.with_name(self.path.name + ".new")
        with temporary.open("w", encoding="utf-8") as file:
            for value in whole or [{"facts": self._facts}]:
                file.write(_dumps(value) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if kind is not None and not self.records:  # it got nowhere: nothing to go on from
            self.finish()

    def put(self, task: str, records: Sequence[dict[str, Any]]) -> None:
        """Keeps finished items."""
        assert self._file is not None
        for record in records:
            self.records.setdefault(task, {})[record["id"]] = record
            self._file.write(_dumps({"task": task, "record": record}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        """The run's own file is written; this one is not needed any more."""
        self.path.unlink(missing_ok=True)


def write(out: Path, value: dict[str, Any]) -> None:
    """The run's file, atomically; numbers that JSON has no word for become null."""
    temporary = out.with_name(out.name + ".new")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(_plain({"format": FORMAT, **value}), file, ensure_ascii=False, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(out)


def read(path: Path) -> dict[str, Any]:
    """A run's file; DataError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no result of rorqual eval ({error})") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT or not isinstance(value.get("tasks"), dict):
        raise DataError(f"{path} is no result of rorqual eval: its 'format' must be {FORMAT!r}")
    return value


def estimate(value: Estimate) -> dict[str, Any]:
    """As it stands in the file."""
    return {"value": value.value, "stderr": value.stderr, "n": value.n}


def table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """Columns under their heads, the first to the left and the others to the right."""
    widths = [max(len(str(row[column])) for row in [head, *rows]) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(str(cell).ljust(width) if not column else str(cell).rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in lines
    )  # fmt: skip


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _dumps(value: object) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        return value.encode("utf-8", "replace").decode()
    return value
