"""Inputs of builds: the lines of field case F27 byte for byte, and small corpora of code-like documents."""

from __future__ import annotations

import json
import random
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np

from rorqual.data.build import build
from rorqual.data.config import BuildConfig
from rorqual.tokenizer import bpe


def awkward_lines(long: int) -> tuple[list[bytes], dict[int, str], list[str]]:
    """Lines of F27 with a long document of `long` characters: the lines, reason by line number, and the documents that are right."""
    document = "word and word\n" * (long // 14)
    lines = [
        b'\xef\xbb\xbf{"text":"alpha"}\n',
        b"\r\n",
        b'{"text":""}\n',
        b'{"text":null}\n',
        b'{"content":"beta"}\n',
        b'{"text":"ga\xffmma"}\n',
        b'{"text":"delta\xe2\x80\xa8epsilon"}\n',
        b'{"text":"bad \\ud83d end"}\n',
        b"[1,2]\n",
        b'{"text":"a"}{"text":"b"}\n',
        json.dumps({"text": document}).encode() + b"\n",
        b'{"text":"zeta"}',
    ]
    reasons = {2: "blank_line", 3: "empty_text", 4: "null_text", 5: "missing_text", 6: "invalid_utf8", 8: "lone_surrogate", 9: "not_an_object", 10: "extra_data"}  # fmt: skip
    return lines, reasons, ["alpha", "delta\u2028epsilon", document, "zeta"]


def documents(count: int, seed: int = 0) -> list[str]:
    """Short functions, all different."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        body = "".join(f"    x = (x + {draw.randrange(10**6)});\n" for _ in range(draw.randrange(1, 6)))
        made.append(f"def f{seed}_{number}(x):\n{body}    return x\n\n")
    return made


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def write_awkward(folder: Path) -> Path:
    """Lines of F27, then 60 documents of which the first ten come again, in three files."""
    texts = documents(60)
    lines, _, _ = awkward_lines(1400)
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b"".join(lines))
    write_jsonl(folder / "b.jsonl", texts[:35])
    write_jsonl(folder / "c.jsonl", texts[35:] + texts[:10])
    return folder


class Inline(Executor):
    """Runs a task when it is submitted, in this process."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def run(settings: BuildConfig, out: Path, **more: Any) -> dict[str, Any]:
    return build(settings, out, **({"executor": Inline()} | more))


def config(*inputs: object, **changes: Any) -> BuildConfig:
    """A build of `inputs` that takes milliseconds: a vocabulary of a few merges, no overlap search unless asked."""
    return BuildConfig(**({"inputs": tuple(map(str, inputs)), "vocab_size": 300, "validation_rate": 0.2, "near_duplicate": 1.0} | changes))


def train_documents(folder: Path, source: str = "text") -> list[str]:
    """Training documents of a built folder, decoded."""
    return _decoded(folder, source, "train")


def validation_documents(folder: Path, source: str = "text") -> list[str]:
    return _decoded(folder, source, "validation")


def _decoded(folder: Path, source: str, split: str) -> list[str]:
    index = json.loads((folder / "index.json").read_text())
    tokenizer = bpe.load(folder / "tokenizer")
    found = []
    for shard in index["sources"][source][split]["shards"]:
        tokens = np.fromfile(folder / source / shard["file"], dtype=np.dtype(index["dtype"]).newbyteorder("<"))
        offsets = np.load(folder / source / shard["file"].replace(".bin", ".offsets.npy"))
        found += [tokenizer.decode(tokens[a:b].tolist()) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the log, which holds times."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "build_log.json"}  # fmt: skip
