"""Built data folders made by hand, for tests of what reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def write_split(folder: Path, split: str, shards: list[list[list[int]]], dtype: str) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, documents in enumerate(shards):
        flat = np.array([token for document in documents for token in document], dtype=dtype)
        flat.tofile(folder / f"{split}-{number:05d}.bin")
        np.save(folder / f"{split}-{number:05d}.offsets.npy", np.cumsum([0, *map(len, documents)]).astype(np.int64))
        entries.append({"file": f"{split}-{number:05d}.bin", "tokens": len(flat), "documents": len(documents)})
    return {"shards": entries, "tokens": sum(e["tokens"] for e in entries), "documents": sum(e["documents"] for e in entries), "bytes": 0}


def write_folder(
    root: Path,
    train: dict[str, list[list[list[int]]]],
    validation: dict[str, tuple[list[list[int]], bytes]],
    *,
    vocab_size: int = 100,
    dtype: str = "uint16",
    eos_id: int = 1,
    tokenizer: str = "t",
) -> Path:
    """A built folder by hand: documents of token ids per source and shard, validation documents with their text."""
    sources = {}
    for number, (name, shards) in enumerate(train.items()):
        documents, text = validation.get(name, ([], b""))
        held_out = write_split(root / name, "validation", [documents], dtype)
        (root / name / "validation.txt").write_bytes(text)
        sources[name] = {
            "id": number,
            "train": write_split(root / name, "train", shards, dtype),
            "validation": {**held_out, "text_file": "validation.txt"},
        }
    index = {
        "format": 1,
        "fingerprint": "f0",
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "dtype": dtype,
        "eos_id": eos_id,
        "sources": sources,
    }
    (root / "index.json").write_text(json.dumps(index))
    return root


def edit(folder: Path, **changes: Any) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, **changes}))
