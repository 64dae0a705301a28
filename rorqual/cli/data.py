"""Build token shards from a corpus: `rorqual data build INPUT... --out DIR`.

rorqual data build --out data/                                  # the default corpus: this Python's standard library
rorqual data build code=src/ web='crawl/*.jsonl.zst' --out data/ --tokenizer runs/laptop/hf
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from typing import Any


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code."""
    from rorqual.data.config import BuildConfig

    default = BuildConfig()
    parser = argparse.ArgumentParser(prog="rorqual data", description="Turn text into token shards.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    build = verbs.add_parser(
        "build",
        help="deduplicate, hold out validation documents, tokenise",
        description="Deduplicate a corpus, hold out validation documents, tokenise, and write memory-mapped shards per source. "
        "A build that was interrupted continues when the same command is given again.",
    )
    build.add_argument("inputs", nargs="*", metavar="INPUT", help="folder, glob or file (.jsonl, .jsonl.gz, .jsonl.zst, .parquet, .txt, .md, .rst, .py), "
                       "or name=path to name its source; without any, the standard library of this Python and generated arithmetic")  # fmt: skip
    build.add_argument("--out", required=True, metavar="DIR", help="data folder to make; it must not exist")
    tokens = build.add_mutually_exclusive_group()
    tokens.add_argument("--tokenizer", metavar="DIR", help="folder with a tokenizer.json to use; without it, one is trained")
    tokens.add_argument(
        "--vocab-size", type=int, default=default.vocab_size, metavar="N", help="ids of the tokenizer to train (default: %(default)s)"
    )
    _number(build, "--tokenizer-bytes", int, default.tokenizer_bytes, "about how much text to train the tokenizer on")
    build.add_argument(
        "--text-field", default=default.text_field, metavar="NAME", help="JSON key or column of the text (default: %(default)s)"
    )
    _number(build, "--validation-rate", float, default.validation_rate, "share of documents held out")
    _number(build, "--validation-bytes", int, default.validation_bytes, "about how much text is held out at most")
    _number(build, "--near-duplicate", float, default.near_duplicate, "share of a held-out document found in training text that removes it")
    _number(build, "--split-rate", float, default.split_rate, "share of punctuation-newline tokens split in training documents")
    _number(build, "--arithmetic-documents", int, default.arithmetic_documents, "generated documents of the default corpus")
    _number(build, "--shard-bytes", int, default.shard_bytes, "largest shard")
    _number(build, "--seed", int, default.seed, "of the held-out documents, the generated ones and the splits")
    build.add_argument("--strict", action="store_true", help="stop at the first record that is rejected")
    build.add_argument(
        "--workers", type=int, default=None, metavar="N", help="processes (default: one per core); the output does not depend on it"
    )
    args = parser.parse_args(argv)
    if args.workers is not None and args.workers < 1:
        parser.error(f"--workers ({args.workers}) must be 1 or larger")

    from rorqual.cli.progress import BuildProgress
    from rorqual.data.build import build as run

    options = {field.name: getattr(args, field.name) for field in fields(BuildConfig) if hasattr(args, field.name)}
    config = BuildConfig(**(options | {"inputs": tuple(args.inputs)}))
    with BuildProgress() as progress:
        index = run(config, args.out, workers=args.workers, progress=progress)
    _print(index, args.out)
    return 0


def _number(parser: argparse.ArgumentParser, name: str, kind: type, default: float, what: str) -> None:
    parser.add_argument(name, type=kind, default=default, metavar="X" if kind is float else "N", help=f"{what} (default: %(default)s)")


def _print(index: dict[str, Any], out: str) -> None:
    print(f"{'source':<14}{'documents':>12}{'tokens':>14}{'bytes':>14}{'held out':>10}{'duplicates':>12}{'near':>8}")
    for name, entry in index["sources"].items():
        train = entry["train"]
        print(
            f"{name:<14}{train['documents']:>12,}{train['tokens']:>14,}{train['bytes']:>14,}{entry['validation']['documents']:>10,}"
            f"{entry['duplicates']:>12,}{entry['near_duplicates']:>8,}"
        )
    if index["rejected"]:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in index["rejected"].items())
        print(f"rejected: {counts} (each with file and line in {out}/rejected.jsonl)")
    if "default_corpus" in index:
        print(f"default corpus: {json.dumps(index['default_corpus'])}")
    print(f"{out}: {index['vocab_size']:,} ids as {index['dtype']}, fingerprint {index['fingerprint'][:16]}")
