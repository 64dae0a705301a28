"""Continue a prompt with a trained model, streaming the text; MTP modules draft where the model has them.

rorqual generate runs/laptop "def fibonacci(n):"
rorqual generate V2-Lite "The capital of France is" --temperature 0 --max-new-tokens 20 --stats
rorqual generate DeepSeek-V3 "..." --weights fp8 --layers 0:4     # a part of a folder, weights kept in FP8
rorqual generate --preset v3_671b --layers 0:4 --random "..."     # true shapes, random weights, nothing on disk
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rorqual.errors import DataError

if TYPE_CHECKING:
    from rorqual.inference.engine import Engine, StepOutput
    from rorqual.inference.params import SamplingParams
    from rorqual.tokenizer.bpe import Tokenizer

DEFAULT_TOKENS = 256


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
    from rorqual.inference.engine import Engine
    from rorqual.inference.params import SamplingParams
    from rorqual.inference.prompts import end_ids, prompt_ids

    asked = SamplingParams(temperature=args.temperature, top_p=args.top_p, top_k=args.top_k, seed=args.seed)
    loaded = load_folder(Path(args.words[0]), args.tokenizer, weights=args.weights, layers=layers)
    for notice in loaded.notices:
        print(f"note: {notice}", file=sys.stderr)
    config = loaded.model.config
    ids = prompt_ids(loaded.tokenizer, prompt, loaded.tokenizer.adds_bos, config.eos_token_id)
    room = max(1, config.max_position_embeddings - len(ids))  # 1: a prompt that is too long is refused with its own message
    most = args.max_new_tokens or min(DEFAULT_TOKENS, room)
    speculative = "auto" if args.speculative == "auto" else 0 if args.speculative == "off" else int(args.speculative)
    engine = Engine(
        loaded.model, loaded.tokenizer, num_blocks=_blocks(min(len(ids) + most, config.max_position_embeddings)), max_num_seqs=1, end_ids=end_ids(loaded.origin, loaded.tokenizer),
        speculative=speculative,
    )  # fmt: skip
    clock = Clock(len(ids))
    outputs = _outputs(engine, ids, replace(asked, max_tokens=most), clock)
    for text in _shown(prompt, outputs, loaded.tokenizer):
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    if args.stats:
        print(clock.summary(engine), file=sys.stderr)
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

    from rorqual.inference.engine import Engine
    from rorqual.inference.params import SamplingParams

    ids = partial.byte_ids(prompt, config.vocab_size)
    params = SamplingParams(
        max_tokens=args.max_new_tokens or 8, temperature=args.temperature, top_p=args.top_p, top_k=args.top_k, seed=args.seed, ignore_eos=True
    )  # fmt: skip
    engine = Engine(
        partial.build_part(part, args.seed), num_blocks=_blocks(len(ids) + (params.max_tokens or 0)), max_num_seqs=1, speculative=0
    )
    clock = Clock(len(ids))
    print(f"prompt: {len(ids)} ids, the text's UTF-8 bytes (a random model has no words)", file=sys.stderr)
    for output in _outputs(engine, ids, params, clock):
        sys.stdout.write("".join(f"{token} " for token in output.new_token_ids))
        sys.stdout.flush()
    sys.stdout.write("\n")
    print(f"{clock.summary(engine)}; peak memory {partial.peak_bytes() / 1e9:.2f} GB", file=sys.stderr)
    return 0


def _blocks(tokens: int) -> int:
    """Cache blocks of one sequence, and one to spare for drafts."""
    from rorqual.inference.blocks import BLOCK_SIZE

    return -(-tokens // BLOCK_SIZE) + 1


class Clock:
    """Counts and times of one answer, for `--stats`."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens, self.new_tokens, self.reason = prompt_tokens, 0, ""
        self._began, self._first, self._last, self._at_first = time.perf_counter(), 0.0, 0.0, 0

    def take(self, output: StepOutput) -> None:
        """One step's tokens."""
        self._last = time.perf_counter()
        self.new_tokens += len(output.new_token_ids)
        self.reason = output.finish_reason or self.reason
        if not self._first:
            self._first, self._at_first = self._last, self.new_tokens

    def summary(self, engine: Engine) -> str:
        """One line: prompt and answer, tokens a second after the first step, drafts."""
        seconds, later, stats = self._last - self._first, self.new_tokens - self._at_first, engine.stats
        rate = f"{later / seconds:.1f}" if later and seconds > 0 else "-"
        parts = [
            f"{self.prompt_tokens} prompt tokens in {self._first - self._began:.2f} s",
            f"{self.new_tokens} new tokens ({self.reason}), {rate} tokens/s",
        ]
        if stats.drafts:
            parts.append(
                f"{stats.accepted} of {stats.drafts} drafts accepted ({stats.accepted / stats.drafts:.0%}), "
                f"{self.new_tokens / max(1, self.new_tokens - stats.accepted):.2f} tokens per step"
            )
        return "; ".join(parts)


def _outputs(engine: Engine, ids: list[int], params: SamplingParams, clock: Clock) -> Iterator[StepOutput]:
    """Steps of one request, as they come; the request is refused here, not at the first step."""
    engine.add_request("1", ids, params)
    return _steps(engine, clock)


def _steps(engine: Engine, clock: Clock) -> Iterator[StepOutput]:
    while engine.has_work:
        for output in engine.step():
            clock.take(output)
            yield output


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        from rorqual.inference.prompts import NOT_UNICODE

        raise DataError(NOT_UNICODE) from None


def _shown(prompt: str, outputs: Iterable[StepOutput], tokenizer: Tokenizer) -> Iterator[str]:
    """The prompt, then each step's text without the stop token; control codes are shown, not sent, to a terminal."""
    from rorqual.inference.detokenize import TextStream, printable

    clean = printable if sys.stdout.isatty() else str
    stream = TextStream(tokenizer.token_bytes)
    yield clean(prompt)
    for output in outputs:
        stopped = output.finish_reason == "stop"
        yield clean(stream.add(output.new_token_ids[:-1] if stopped else output.new_token_ids))
