"""Speed of `rorqual data build` against the batch encoding of `tokenizers` on the same text, tokenizer and cores; memory of all its processes.

python benchmarks/data_build.py                          # the standard library's source: two runs of each, alternating
python benchmarks/data_build.py --lines 1000000          # as many one-line documents: memory, without the peer

One JSON line per figure: what, value, peer, ratio. Rates are bytes of text per second of wall time, and ours includes what the peer does
not do: starting processes, reading JSON, hashes, near-duplicates, validation split, writing shards. The tokenizer is trained beforehand.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from rorqual.data import corpus, stdlib
from rorqual.data.dedup import Split
from rorqual.data.records import read
from rorqual.tokenizer import bpe

_WORDS = ("model", "return", "value", "of the", "import", "layer", "token", "self", "for", "in range", "data", "and", "loss", "=", "+")


def emit(what: str, value: float, peer: float | None = None, **more: Any) -> None:
    """One JSON line; `ratio` is value over peer."""
    ratio = None if peer is None else value / peer
    line = {"what": what, "value": value, "peer": peer, "ratio": ratio, **more}
    line |= {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "machine": platform.machine()}
    print(json.dumps({key: float(f"{item:.4g}") if isinstance(item, float) else item for key, item in line.items()}), flush=True)


def library_texts() -> list[str]:
    """Documents of the default corpus's source `code`."""
    files = [file for file in stdlib.find_files() if file.source == "code"]
    spans = corpus.ranges(files, "text", 1 << 30)
    return [record.text for span in spans for record in read(span, "text", Split(0, 0.0)) if record.reason is None]


def write_lines(path: Path, count: int) -> None:
    """`count` different one-line documents of 3 to 12 words."""
    draw = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            file.write(json.dumps({"text": f"{number} " + " ".join(draw.choices(_WORDS, k=draw.randrange(3, 12)))}) + "\n")


def run(arguments: list[str]) -> tuple[float, int]:
    """Seconds of `rorqual data build` and the largest sum of proportional set sizes of its processes (memory they share counts once)."""
    start = time.perf_counter()
    process = psutil.Popen(
        [sys.executable, "-m", "rorqual", "data", "build", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    peak = 0
    while process.poll() is None:
        total = 0
        for member in [process, *_children(process)]:
            try:
                total += member.memory_full_info().pss
            except (psutil.Error, OSError):
                continue
        peak = max(peak, total)
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"rorqual data build {' '.join(arguments)} failed with exit code {process.returncode}")
    return time.perf_counter() - start, peak


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def main() -> None:
    """Prints the figures; everything is written in a temporary folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lines", type=int, default=0, help="one-line documents instead of the standard library; no peer")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "corpus.jsonl"
        if args.lines:
            write_lines(source, args.lines)
            size = source.stat().st_size
            seconds, peak = run([str(source), "--out", str(folder / "out"), "--vocab-size", str(args.vocab_size)])
            what = f"data build, {args.lines:,} one-line documents"
            emit(f"{what}, tokenizer trained", size / seconds, unit="bytes/s", seconds=seconds)
            emit(f"{what}, peak memory of all processes", float(peak), unit="bytes", limit=1e9)
            return
        texts = library_texts()
        size = sum(len(text.encode()) for text in texts)
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        tokenizer = bpe.train(texts, args.vocab_size, folder / "tokenizer")
        ours, peers, peaks = [], [], []
        for turn in range(args.repeat):
            seconds, peak = run([str(source), "--out", str(folder / f"out{turn}"), "--tokenizer", str(folder / "tokenizer")])
            ours.append(seconds)
            peaks.append(peak)
            start = time.perf_counter()
            tokenizer.encode_batch(texts)
            peers.append(time.perf_counter() - start)
        more = {"unit": "bytes/s", "bytes": size, "vocab_size": args.vocab_size}
        emit("data build of the standard library's source", size / statistics.median(ours), size / statistics.median(peers), **more)
        emit("data build, peak memory of all processes", float(max(peaks)), unit="bytes", limit=1e9)


if __name__ == "__main__":
    main()
