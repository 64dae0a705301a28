"""Continue a prompt with a trained model, streaming the text; MTP modules draft where the model has them.

rorqual generate runs/laptop "def fibonacci(n):"
rorqual generate V2-Lite "The capital of France is" --temperature 0 --max-new-tokens 20 --stats
rorqual generate DeepSeek-V3 "..." --weights fp8 --layers 0:4     # a part of a folder, weights kept in FP8
rorqual generate --preset v3_671b --layers 0:4 --random "..."     # true shapes, random weights, nothing on disk
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rorqual.errors import DataError

if TYPE_CHECKING:
    from rorqual.inference.generate import GenerationStats, Generator
    from rorqual.tokenizer.bpe import Tokenizer

DEFAULT_TOKENS = 256
_NOT_UNICODE = "the prompt is not valid Unicode text (bytes that are not UTF-8, or lone surrogates); correct its encoding"


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code. Raises RorqualError for a folder or a setting that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="rorqual generate", description="Continue a prompt with a model of the DeepSeek-V3 family and print the text as it comes."
    )
    parser.add_argument(
        "words", nargs="+", metavar="[FOLDER] PROMPT",
        help="run folder (runs/NAME) or a folder with config.json, safetensors and tokenizer files; text to continue ('-' reads it from standard input, "
        "'' starts a new document). With --preset the prompt alone.",
    )  # fmt: skip
    parser.add_argument(
        "--weights",
        choices=("fp32", "bf16", "fp8"),
        help="how weights are kept in memory (default: fp32 where it fits, else as the folder has them)",
    )
    parser.add_argument("--layers", metavar="A:B", help="only layers A to B-1 of the trunk")
    parser.add_argument("--preset", metavar="NAME", help="with --random: the shapes of a published model")
    parser.add_argument(
        "--random", action="store_true", help="random weights, made in memory; the text means nothing, shapes and memory do"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help=f"at most this many tokens (default: {DEFAULT_TOKENS}, or what fits)"
    )
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the most likely token every time (default: 0.7)")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="draw from the fewest tokens that reach this probability (default: 1, off)"
    )
    parser.add_argument("--top-k", type=int, default=0, help="draw from this many most likely tokens (default: 0, off)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws; the same seed gives the same text (default: 0)")
    parser.add_argument(
        "--speculative", default="auto", metavar="auto|off|K",
        help="draft with this many MTP modules; the text does not depend on it (default: auto, the first module if there is one)",
    )  # fmt: skip
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="folder with tokenizer.json (default: the model's own)")
    parser.add_argument("--stats", action="store_true", help="print counts, speed and acceptance to standard error at the end")
    args = parser.parse_args(argv)
    if args.speculative not in ("auto", "off") and not args.speculative.isdecimal():
        parser.error(f"--speculative ({args.speculative!r}) must be auto, off or a number of MTP modules")
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        parser.error(f"--max-new-tokens ({args.max_new_tokens}) must be at least 1")
    if (args.preset is None) == args.random:
        parser.error("--preset and --random go together: a preset has no weights of its own")
    if len(args.words) != (1 if args.preset else 2):
        parser.error("give the prompt alone with --preset" if args.preset else "give a folder and a prompt")
    from rorqual.cli.export import parse_layers

    layers = parse_layers(args.layers)
    prompt = _standard_input() if args.words[-1] == "-" else args.words[-1]
    if args.preset:
        return _random(args, layers, prompt)

    from rorqual.cli.model_folder import load_folder
    from rorqual.inference.generate import Generator
    from rorqual.inference.sampler import SamplingParams

    asked = SamplingParams(temperature=args.temperature, top_p=args.top_p, top_k=args.top_k, seed=args.seed)
    loaded = load_folder(Path(args.words[0]), args.tokenizer, weights=args.weights, layers=layers)
    for notice in loaded.notices:
        print(f"note: {notice}", file=sys.stderr)
    config = loaded.model.config
    ids = prompt_ids(loaded.tokenizer, prompt, _adds_bos(loaded.origin), config.eos_token_id)
    room = max(1, config.max_position_embeddings - len(ids))  # 1: a prompt that is too long is refused with its own message
    params = SamplingParams(
        max_tokens=args.max_new_tokens or min(DEFAULT_TOKENS, room), temperature=asked.temperature, top_p=asked.top_p, top_k=asked.top_k,
        seed=asked.seed, stop_token_ids=_end_ids(loaded.origin, loaded.tokenizer),
    )  # fmt: skip
    num_drafts = {"auto": min(1, config.num_nextn_predict_layers), "off": 0}.get(args.speculative)
    num_drafts = int(args.speculative) if num_drafts is None else num_drafts
    loop = Generator(loaded.model, [ids], params, vocab_limit=loaded.tokenizer.vocab_size, num_drafts=num_drafts)
    for text in _shown(prompt, loop, loaded.tokenizer):
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    if args.stats:
        print(_summary(loop.stats, loop.sequences[0].finish_reason or ""), file=sys.stderr)
    return 0


def _random(args: argparse.Namespace, layers: tuple[int, int] | None, prompt: str) -> int:
    """True shapes, random weights: prints what was built, the continuation's ids, speed and peak memory."""
    from rorqual.cli import partial

    part = partial.plan_part(args.preset, layers, args.weights)
    config = part.config
    kept = "FP8" if part.fp8 else "FP32"
    print(
        f"{args.preset}: {config.num_hidden_layers} layers, width {config.hidden_size}, {part.num_bytes / 1e9:.1f} GB of random weights in {kept}",
        file=sys.stderr,
    )

    from rorqual.inference.generate import Generator
    from rorqual.inference.sampler import SamplingParams

    ids = partial.byte_ids(prompt, config.vocab_size)
    params = SamplingParams(
        max_tokens=args.max_new_tokens or 8,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        seed=args.seed,
        ignore_eos=True,
    )
    loop = Generator(partial.build_part(part, args.seed), [ids], params)
    print(f"prompt: {len(ids)} ids, the text's UTF-8 bytes (a random model has no words)", file=sys.stderr)
    while not loop.done:
        for delta in loop.step():
            sys.stdout.write("".join(f"{token} " for token in delta.token_ids))
            sys.stdout.flush()
    sys.stdout.write("\n")
    print(f"{_summary(loop.stats, 'length')}; peak memory {partial.peak_bytes() / 1e9:.2f} GB", file=sys.stderr)
    return 0


def prompt_ids(tokenizer: Tokenizer, prompt: str, adds_bos: bool, eos_id: int) -> list[int]:
    """Ids of the prompt; an empty one becomes the start of a document: BOS where the model was trained with it, else the end token."""
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise DataError(_NOT_UNICODE)
    ids = tokenizer.encode(prompt)
    if adds_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        return [tokenizer.bos_id, *ids]
    return ids or [eos_id]


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise DataError(_NOT_UNICODE) from None


def _shown(prompt: str, loop: Generator, tokenizer: Tokenizer) -> Iterator[str]:
    """The prompt, then each step's text without the stop token; control codes are shown, not sent, to a terminal."""
    from rorqual.inference.detokenize import TextStream, printable

    clean = printable if sys.stdout.isatty() else str
    stream = TextStream(tokenizer.token_bytes)
    yield clean(prompt)
    while not loop.done:
        for delta in loop.step():
            stopped = delta.finish_reason == "stop"
            yield clean(stream.add(delta.token_ids[:-1] if stopped else delta.token_ids))


def _adds_bos(origin: Path) -> bool:
    return _read(origin / "tokenizer_config.json").get("add_bos_token") is True


def _end_ids(origin: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """End tokens beside the configuration's: generation_config.json may list several, and the tokenizer names its own."""
    named = _read(origin / "generation_config.json").get("eos_token_id")
    listed = named if isinstance(named, list) else [named]
    own = {number for number in (*listed, tokenizer.eos_id) if type(number) is int}
    return tuple(sorted(own))


def _read(path: Path) -> dict[str, object]:
    """The object of a small JSON file; empty where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _summary(stats: GenerationStats, reason: str) -> str:
    rate = f"{stats.tokens_per_second:.1f}" if stats.tokens_per_second else "-"
    parts = [
        f"{stats.prompt_tokens} prompt tokens in {stats.prefill_seconds:.2f} s",
        f"{stats.new_tokens} new tokens ({reason}), {rate} tokens/s",
    ]
    if stats.acceptance_rate is not None:
        parts.append(
            f"{stats.accepted} of {stats.drafts} drafts accepted ({stats.acceptance_rate:.0%}), {stats.tokens_per_step:.2f} tokens per step"
        )
    return "; ".join(parts)
