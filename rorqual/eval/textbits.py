"""Bits per byte of any text: a file, a folder of files, or rows with a text field. Report section 4.4.1 (Pile-test). No torch.

    BPB = total NLL / (ln 2 * bytes of the original UTF-8 text)

A document longer than the window is read by windows that slide by half a window, so that every token after the first window is scored
with at least half a window before it; each token is scored exactly once. A smaller stride gives more context and costs more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rorqual.errors import DataError
from rorqual.eval.data import Row, check_rows, find, read_rows
from rorqual.eval.task import Item, Task

_ROWS = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")


@dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """Whole documents; `field` holds the text where they are rows."""

    kind: ClassVar[str] = "bits"
    field: str = "text"

    def items(self, data: Path, shots: int | None = None, limit: int | None = None) -> list[Item]:
        """One item per document, its text as `prompt`."""
        path = data if data.is_file() else find(data, self.files)
        if path is None and data.is_dir() and any(data.glob("*.txt")):
            path = data
        if path is None:
            raise DataError(
                f"task {self.name} needs {' or '.join(str(data / place) for place in self.files)}: {self.form}; name it with --data"
            )
        out: list[Item] = []
        for row in self._documents(path):
            if limit is not None and len(out) == limit:
                break
            out.append(Item(row["_id"], {}, row["text"]))
        if not any(item.prompt for item in out):
            raise DataError(f"{path} has no text; task {self.name} needs {self.form}")
        return out

    def _documents(self, path: Path) -> Iterator[Row]:
        files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        for file in files:
            name = file.name if path == file else file.relative_to(path).as_posix()
            if file.name.endswith(_ROWS):
                rows = read_rows(file)
                check_rows(file, rows, (self.field,), ())
                for number, row in enumerate(rows):
                    if not isinstance(row[self.field], str):
                        raise DataError(
                            f"{file}, row {number + 1}: field {self.field!r} holds {type(row[self.field]).__name__}, a text is required"
                        )
                    yield {"_id": f"{name}:{number}", "text": row[self.field]}
            else:
                try:
                    yield {"_id": name, "text": file.read_bytes().decode("utf-8")}
                except (OSError, UnicodeDecodeError) as error:
                    raise DataError(f"{file} cannot be read as UTF-8 text ({error}); leave it out or correct its encoding") from None
