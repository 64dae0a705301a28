"""Pre-train a model from a recipe or a config.json.

rorqual pretrain laptop --data data/laptop                     # a new run in runs/laptop
rorqual pretrain --out runs/laptop --resume                    # the same run, exactly where it stopped
rorqual pretrain laptop --train.total-tokens 100000 --out runs/short
rorqual pretrain --init runs/laptop --out runs/long --set train.sequence_length=512 --set 'model.rope_scaling={"factor": 4.0, "original_max_position_embeddings": 1024}'
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rorqual.cli import memory_check
from rorqual.errors import ConfigError

if TYPE_CHECKING:
    from rorqual.train.hyperparams import RunConfig


def main(argv: list[str]) -> int:
    """Runs the verb: 0 when the run is finished, 130 or 143 when a signal stopped it after saving. Raises RorqualError."""
    parser = _parser()
    own, overrides = split_overrides(argv)
    args = parser.parse_args(own)
    if args.help:
        parser.print_help()
        if args.recipe:
            from rorqual.train.hyperparams import from_command_line

            print("\nfields of the configuration:\n")
            from_command_line(read_recipe(args.recipe), ["--help"], prog="rorqual pretrain")
        return 0
    if args.resume and (args.init or args.overwrite):
        parser.error("--resume continues a run as it is; it does not go with --init or --overwrite")
    if args.init_weights and not args.init:
        parser.error("--init-weights goes with --init")
    run, out = _configure(args, overrides, parser.error)
    return pretrain(run, out, args.data, resume=args.resume, init=args.init, init_weights=args.init_weights or "raw",
                    overwrite=args.overwrite, sinks=args.sink, ignore_memory=args.ignore_memory)  # fmt: skip


def pretrain(
    run: RunConfig, out: Path, data: Path | None, *, resume: bool = False, init: Path | None = None, init_weights: str = "raw",
    overwrite: bool = False, sinks: list[str] | None = None, ignore_memory: bool = False,
) -> int:  # fmt: skip
    """Opens the data and trains; prints what to do next. Returns the exit code."""
    folder = _data_folder(out, data)
    from rorqual.data.loader import PackedDataset

    dataset = PackedDataset(folder, run.data, run.train.sequence_length, vocab_size=run.model.vocab_size)
    from rorqual.train.trainer import train

    memory_check.check_run(run, force=ignore_memory)
    if not resume:
        print(run.to_json(), end="")
    result = train(run, out, data=dataset, resume_run=resume, init=init, init_weights=init_weights, overwrite=overwrite, sinks=sinks or ())  # type: ignore[arg-type]
    if result.signal is not None:
        again = shlex.join(["rorqual", "pretrain", "--out", str(out), "--data", str(folder), "--resume"])
        print(f"stopped at step {result.step}, {result.tokens:,} tokens; continue with: {again}", file=sys.stderr)
        return 128 + result.signal
    for record in result.final:
        name = "moving average" if record["weights"] == "ema" else "weights"
        print(f"{name}: {record['bpb']:.4f} bits per byte on {record['validation_tokens']:,} validation tokens of {record['source']!r}")
    print(
        f"finished: step {result.step}, {result.tokens:,} tokens, in {out}; write a model folder with: rorqual export {shlex.quote(str(out))} OUT"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rorqual pretrain", add_help=False, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Pre-train a model. Every field of the configuration can be given as --part.field VALUE, e.g. --train.total-tokens 1000000;\n"
        "`rorqual pretrain RECIPE --help` lists them all.",
    )  # fmt: skip
    parser.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE",
        help="name of a recipe, or the config.json of a run (default: with --resume or --init, that run's)",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder that `rorqual data build` wrote (default: OUT/data)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/NAME)")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in OUT from its newest checkpoint; a changed field is an error"
    )
    parser.add_argument("--init", type=Path, metavar="DIR", help="start a new phase from the weights of a run or of a Hugging Face folder")
    parser.add_argument("--init-weights", choices=("raw", "ema"), help="of a run: its last weights, or their moving average (default: raw)")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that OUT holds")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=JSON",
        help="set a field, also a whole part, e.g. --set model.rope_scaling=null",
    )
    parser.add_argument(
        "--sink",
        action="append",
        default=[],
        choices=("tensorboard", "trackio", "wandb"),
        help="send metrics there too; metrics.jsonl is always written",
    )
    memory_check.add_option(parser)
    parser.add_argument("-h", "--help", action="store_true", help="show this help")
    return parser


def _configure(args: argparse.Namespace, overrides: list[str], usage: Callable[[str], Any]) -> tuple[RunConfig, Path]:
    """The run's configuration and folder. Where no recipe is named, the run in the folder, or the parent's, gives it."""
    from rorqual.train.hyperparams import from_command_line

    settings = read_settings(args.set)
    if args.init is not None:
        from rorqual.train import extend

        if args.out is None:
            usage("--init needs --out: a new phase has a folder of its own")
        run = extend.derive(args.init, read_recipe(args.recipe) if args.recipe else None, settings)
    elif args.recipe is None:
        if not args.resume or args.out is None:
            usage("name a recipe or a config.json, or give --out DIR --resume")
        from rorqual.train.rundir import read_config

        run = read_config(args.out).with_(settings)
    else:
        run = read_recipe(args.recipe).with_(settings)
    run = from_command_line(run, overrides, prog="rorqual pretrain") if overrides else run
    return run, args.out or Path("runs") / run.name


def read_recipe(recipe: str) -> RunConfig:
    """The configuration that a recipe's name or the path of a config.json stands for."""
    if not recipe.endswith(".json"):
        from rorqual.recipes.catalog import recipe as named

        return named(recipe)
    from rorqual.train.hyperparams import RunConfig

    try:
        text = Path(recipe).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read {recipe}: {getattr(error, 'strerror', None) or error}; give a recipe's name or the config.json of a run"
        ) from error
    return RunConfig.from_json(text)


def split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """(the verb's own arguments, dotted overrides with their values): after --part.field, all up to the next option are its values."""
    own: list[str] = []
    overrides: list[str] = []
    target = own
    for word in argv:
        if word.startswith("--"):
            target = overrides if "." in word.partition("=")[0] else own
        target.append(word)
    return own, overrides


def read_settings(pairs: list[str]) -> dict[str, Any]:
    """{dotted field: value} of --set FIELD=JSON; a value that is no JSON is taken as text."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator:
            raise ConfigError(f"--set ({pair!r}) must be FIELD=JSON, e.g. train.total_tokens=1000000")
        try:
            settings[name] = json.loads(text)
        except json.JSONDecodeError:
            settings[name] = text
    return settings


def _data_folder(out: Path, data: Path | None) -> Path:
    """--data, else OUT/data where it was built."""
    folder = out / "data" if data is None else data
    if not (folder / "index.json").is_file():
        raise ConfigError(
            f"{folder} has no index.json, so it is no data folder; make one with `rorqual data build {folder}`, or give --data DIR"
        )
    return folder
