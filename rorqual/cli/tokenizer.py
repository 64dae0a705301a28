"""Train a tokenizer on a corpus: `rorqual tokenizer train INPUT... --vocab-size N --out DIR`.

rorqual tokenizer train --vocab-size 4096 --out tokenizer/                  # on this Python's standard library
rorqual tokenizer train 'crawl/*.jsonl.zst' --vocab-size 32768 --out tokenizer/
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rorqual tokenizer", description="Byte-level BPE with DeepSeek's pre-tokeniser and special tokens."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    train = verbs.add_parser("train", help="train one", description="Train a tokenizer; transformers reads the folder too.")
    train.add_argument(
        "inputs", nargs="*", metavar="INPUT", help="folder, glob or file as for `rorqual data build`; without any, the standard library"
    )
    train.add_argument(
        "--vocab-size", type=int, default=4096, metavar="N", help="ids, special tokens and 256 bytes included (default: %(default)s)"
    )
    train.add_argument("--out", required=True, metavar="DIR", help="folder to make; it must not exist")
    train.add_argument("--bytes", type=int, default=256 << 20, metavar="N", help="read at most so much text (default: %(default)s)")
    train.add_argument("--text-field", default="text", metavar="NAME", help="JSON key or column of the text (default: %(default)s)")
    args = parser.parse_args(argv)

    from rorqual.errors import DataError, RunError
    from rorqual.tokenizer import bpe

    if os.path.lexists(args.out):
        raise RunError(f"{args.out} exists; a tokenizer is never overwritten, so give another --out, or delete it")
    if args.vocab_size < bpe.SMALLEST_VOCABULARY:
        parser.error(f"--vocab-size ({args.vocab_size}) must be {bpe.SMALLEST_VOCABULARY} or more")
    texts = _texts(args.inputs, args.text_field, args.bytes)
    first = next(texts, None)
    if first is None:
        raise DataError(
            f"{' '.join(args.inputs) or 'the standard library'} has zero documents; check the paths and --text-field ({args.text_field!r})"
        )
    tokenizer = bpe.train(_joined(first, texts), args.vocab_size, args.out)
    print(f"{args.out}: {tokenizer.vocab_size:,} ids, fingerprint {tokenizer.fingerprint[:16]}")
    if tokenizer.vocab_size < args.vocab_size:
        print(
            f"the text has no more pairs to merge, so there are fewer ids than the {args.vocab_size:,} asked for; give more text for more"
        )
    return 0


def _joined(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _texts(inputs: list[str], text_field: str, limit: int) -> Iterator[str]:
    from rorqual.data import corpus, stdlib
    from rorqual.data.dedup import Split
    from rorqual.data.records import read

    if inputs:
        files = corpus.find_files(inputs)
        spans = corpus.ranges(files, text_field, corpus.range_bytes(corpus.estimated_bytes(files)))
    else:
        spans = [span for span in stdlib.corpus_ranges(stdlib.find_files(), 2048, 2 << 20) if span.kind != "docstrings"]
    for span in spans:
        for record in read(span, text_field, Split(0, 0.0)):
            if record.reason is None:
                if limit <= 0:
                    return
                limit -= len(record.raw)
                yield record.text
