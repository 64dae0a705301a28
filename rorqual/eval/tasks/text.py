"""Bits per byte of any text (Pile-test of the report, section 4.4.1). No torch."""

from __future__ import annotations

from rorqual.eval.textbits import TextTask


def task(name: str) -> TextTask:
    """`bpb`: every document of a text file, a folder, or rows with the field "text"."""
    return TextTask(
        name=name, version=1, files=("pile/test.jsonl", "pile.jsonl", "tinyshakespeare/input.txt"),
        form="UTF-8 text files, or JSON lines or Parquet with the text of a document in the field 'text'", fields=(), shots=0,
        question=lambda row: row["text"], answer=lambda row: "",
    )  # fmt: skip
