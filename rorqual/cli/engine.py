"""Options and opening of the inference engine that the verbs `serve` and `chat` share."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rorqual.cli import memory_check

if TYPE_CHECKING:
    from rorqual.cli.model_folder import LoadedFolder
    from rorqual.inference.engine import Engine
    from rorqual.server.served import Served


@dataclass(frozen=True)
class Opened:
    """An engine over a folder's model, and what the outside has to know about the model."""

    engine: Engine
    served: Served
    loaded: LoadedFolder


def add_options(parser: argparse.ArgumentParser) -> None:
    """The folder and what the engine may be told."""
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="run (runs/NAME) or folder with config.json, safetensors, tokenizer files"
    )
    parser.add_argument(
        "--weights",
        choices=("fp32", "bf16", "fp8", "fp16", "int8"),
        help="how weights are kept in memory (default: fp32 where it fits, else as the folder has them); fp16 and int8 change results, "
        "their error is measured and printed",
    )
    parser.add_argument(
        "--device", default="auto", metavar="auto|cpu|cuda", help="where the model runs (default: auto, a GPU where there is one, in BF16)"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="folder with the tokenizer (default: the model's own)")
    parser.add_argument(
        "--speculative", type=_speculative, default="auto", metavar="auto|off|K",
        help="draft K tokens a step with the MTP modules; the text does not depend on it (default: auto, one draft as long as it pays)",
    )  # fmt: skip
    parser.add_argument("--max-num-seqs", type=_count, default=64, metavar="N", help="answers that run together (default: 64)")
    parser.add_argument(
        "--max-num-batched-tokens", type=_count, default=512, metavar="N", help="tokens of one step, prompts included (default: 512)"
    )
    parser.add_argument(
        "--cache-gb", type=float, metavar="GB", help="memory for cached tokens (default: every context whole, but at most 0.5)"
    )
    memory_check.add_option(parser)


def _speculative(text: str) -> str | int:
    if text == "auto":
        return text
    if text == "off":
        return 0
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} must be auto, off or a number of drafts")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def open_engine(args: argparse.Namespace, name: str | None = None, queue_limit: int | None = None) -> Opened:
    """Loads the folder and builds the engine; notices go to standard error. RorqualError for what cannot be used."""
    from rorqual.cli.model_folder import load_folder
    from rorqual.inference import prompts
    from rorqual.inference.engine import Engine
    from rorqual.inference.gpu import device_for
    from rorqual.server.served import Served
    from rorqual.tokenizer.templates import style_of

    lossy = args.weights in ("fp16", "int8")
    loaded_as, device = "fp32" if lossy else args.weights, device_for(args.device, args.weights)
    memory_check.check_folder(
        args.folder, loaded_as, sequences=args.max_num_seqs, batched_tokens=args.max_num_batched_tokens,
        cache_bytes=None if args.cache_gb is None else args.cache_gb * 1e9, drafts=None if args.speculative == "auto" else args.speculative,
        force=args.ignore_memory, device=device,
    )  # fmt: skip
    loaded = load_folder(args.folder, args.tokenizer, weights=loaded_as, device=device)
    for notice in loaded.notices:
        print(f"note: {notice}", file=sys.stderr)
    tokenizer, config = loaded.tokenizer, loaded.model.config
    engine = Engine(
        loaded.model, tokenizer, speculative=args.speculative, max_num_seqs=args.max_num_seqs, queue_limit=queue_limit,
        max_num_batched_tokens=args.max_num_batched_tokens, memory=None if args.cache_gb is None else int(args.cache_gb * 1e9),
        end_ids=prompts.end_ids(loaded.origin, tokenizer), weights=args.weights if lossy else None,
        enable_return_routed_experts=getattr(args, "rl", False),
    )  # fmt: skip
    error = engine.runner.weight_error()
    if error is not None:
        print(
            f"note: weights in {args.weights}: relative error {error[0]:.2g} of the matrices, {error[1]:.2g} of the logits", file=sys.stderr
        )
    served = Served(
        name or args.folder.resolve().name, tokenizer, config.max_position_embeddings, config.vocab_size, engine.end_ids,
        adds_bos=loaded.tokenizer.adds_bos, style=style_of(tokenizer), has_mtp=engine.num_drafts > 0,
    )  # fmt: skip
    return Opened(engine, served, loaded)
