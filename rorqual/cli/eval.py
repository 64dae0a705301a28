"""Evaluate a model folder or a server on benchmarks, by the report's protocols; compare two runs.

rorqual eval runs/laptop --tasks lambada,arc_easy,gsm8k --data ../shared/data --limit 100
rorqual eval http://localhost:8000/v1 --model NAME --tasks gsm8k,humaneval --data DATA
rorqual eval DIR --tasks gsm8k --data hf:openai/gsm8k:main:test      # rows from Hugging Face `datasets`
rorqual eval DIR --harness lm-eval --tasks arc_easy --data DATA      # the same model through lm-evaluation-harness
rorqual eval --compare a.json b.json                                 # paired differences with confidence intervals
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rorqual.errors import ConfigError

if TYPE_CHECKING:
    from rorqual.eval.models import Model
    from rorqual.eval.task import Task


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code, 1 where items failed. Raises RorqualError for what cannot be evaluated."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.list:
        return _list()
    if args.compare:
        from rorqual.eval import compare, results

        print(compare.report(results.read(args.compare[0]), results.read(args.compare[1]), seed=args.seed))
        return 0
    if args.target is None:
        if args.published:
            from rorqual.eval import published

            print(published.report(Path(args.data) if args.data else None))
            return 0
        parser.error("give a model folder or a server's URL, or --compare, --published or --list")
    if args.tasks is None:
        parser.error("name the tasks: --tasks lambada,arc_easy (`rorqual eval --list` shows all)")
    if args.harness and args.data is None:
        return _harness(args, [], None, {})
    with tempfile.TemporaryDirectory(prefix="rorqual-eval-") as folder:
        tasks, data, said = _tasks(args, Path(folder))
        return _harness(args, tasks, data, said) if args.harness else _native(args, tasks, data, said)


def _tasks(args: argparse.Namespace, folder: Path) -> tuple[list[Task], Path, dict[str, str]]:
    """The tasks named, where their rows lie, and what they come from where that is a data set of the hub: written below `folder`."""
    from rorqual.eval import hub
    from rorqual.eval.tasks import catalog

    tasks = [catalog.task(name) for name in catalog.expand(args.tasks)]
    if args.data is not None and hub.is_hub(args.data):
        if hub.parse(args.data) is not None and len(tasks) > 1:
            raise ConfigError(
                f"--data {args.data} is one data set, and {len(tasks)} tasks are named; name one task, or --data hf for each one's own"
            )
        fields = hub.field_map(args.fields or "")
        made = [hub.fetch(task, args.data, fields, folder, args.shots) for task in tasks]
        return [task for task, _ in made], folder, {task.name: said for task, said in made}
    if args.fields:
        raise ConfigError(
            f"--fields is for data sets of the hub (--data hf:NAME), not for {args.data}; a task file in JSON has a field map of its own"
        )
    if args.data is None or not Path(args.data).exists():
        raise ConfigError(f"--data ({args.data}) must be a folder or file with the tasks' data; the tasks say what they need")
    return tasks, Path(args.data), {}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rorqual eval", description="Evaluate a model of the DeepSeek-V3 family, or any OpenAI-compatible server."
    )
    add = parser.add_argument
    add("target", nargs="?", metavar="DIR|URL", help="run or model folder, or the base URL of a server (http://localhost:8000/v1)")
    add("--tasks", metavar="A,B", help="tasks by name, or JSON files of generic ones; `--list` shows all")
    add(
        "--data",
        metavar="PATH|hf:NAME",
        help="folder with the tasks' files, or one file for one task; or a data set of the Hugging Face hub: hf:NAME[:CONFIG[:SPLIT]], hf alone for each task's own",
    )
    add("--fields", metavar="A=B,C=D", help="with hf: the task's fields and the data set's columns that stand for them")
    add("--limit", type=_positive, metavar="N", help="only the first N items of each task")
    add("--shots", type=_count, metavar="N", help="examples before each item (default: the report's number for each task)")
    add("--batch", default="auto", metavar="auto|N", help="items scored together, or requests to a server at a time (default: auto)")
    add("--out", type=Path, metavar="FILE", help="result (default: eval-NAME.json); a run that was killed goes on from FILE.partial")
    add("--model", metavar="NAME", help="with a URL: the model's name there (default: the first that the server lists)")
    add(
        "--timeout",
        type=_positive,
        default=600,
        metavar="SECONDS",
        help="with a URL: silence after which a request has failed (default: 600)",
    )
    add("--api-key-env", default="OPENAI_API_KEY", metavar="VAR", help="environment variable with the server's key, if it wants one")
    add("--chat", action="store_true", help="ask generating tasks as a user's message, in the model's chat format")
    add(
        "--repeats", type=_positive, default=1, metavar="N", help="answers per item: mean, pass@k and maj@N over them (needs a temperature)"
    )
    add("--temperature", type=float, default=0.0, help="of answers; 0 is greedy (default: 0)")
    add("--top-p", type=float, default=1.0, help="draw from the fewest tokens that reach this probability (default: 1, off)")
    add("--max-tokens", type=_positive, metavar="N", help="most tokens of an answer (default: the task's own)")
    add("--seed", type=int, default=0, help="of draws and intervals (default: 0)")
    add("--window", type=_positive, metavar="N", help="most tokens the model reads at a time (default: its context)")
    add(
        "--stride", type=_positive, metavar="N", help="bits per byte: tokens scored by each window after the first (default: half a window)"
    )
    add("--weights", choices=("fp32", "bf16", "fp8"), help="how weights are kept in memory (default: fp32 where it fits)")
    add("--tokenizer", type=Path, metavar="DIR", help="folder with the tokenizer (default: the model's own)")
    add(
        "--published",
        action="store_true",
        help="put the report's figures beside ours; alone: print them (with --data: and which files are there)",
    )
    add("--harness", choices=("lm-eval",), help="run through lm-evaluation-harness (pip install 'rorqual[eval]')")
    add("--compare", nargs=2, type=Path, metavar="FILE", help="two results: paired differences with 95%% intervals")
    add("--list", action="store_true", help="show every task, its shots and the file it needs")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 0")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


# ---------------------------------------------------------------------- what can be shown without a model


def _list() -> int:
    from rorqual.eval.results import table
    from rorqual.eval.tasks import catalog

    rows = []
    for name in catalog.names():
        one = catalog.task(name)
        rows.append([name, one.kind, str(one.shots), one.files[0]])
    print(table(rows, ["task", "kind", "shots", "file"]))
    print("\ngroups: " + ", ".join(catalog.GROUPS))
    return 0


# ---------------------------------------------------------------------- runs


def _native(args: argparse.Namespace, tasks: list[Task], data: Path, said: dict[str, str]) -> int:
    from rorqual.eval import results
    from rorqual.eval.models import Asking
    from rorqual.eval.run import Options, evaluate
    from rorqual.eval.task import GenerationTask, Tools, prompts_hash

    if args.repeats > 1 and args.temperature == 0:
        raise ConfigError("--repeats asks for several answers of each item, and --temperature 0 makes them equal; use --temperature 0.7")
    if args.temperature < 0:
        raise ConfigError(f"--temperature ({args.temperature}) must be at least 0")
    if args.out:
        _free(args.out)
    ready = [(task, task.items(data, args.shots, args.limit)) for task in tasks]  # every file is refused before the model is loaded
    model = _model(args)
    likelihood = [task.name for task in tasks if not isinstance(task, GenerationTask)]
    if likelihood:
        model.require_likelihood(likelihood)
    options = Options(
        asking=Asking(temperature=args.temperature, top_p=args.top_p, seed=args.seed, n=args.repeats, chat=args.chat),
        max_tokens=args.max_tokens, batch=_batch(args.batch), stride=args.stride, passes=(1, 2, 5, 10, 100),
    )  # fmt: skip
    settings = {
        "limit": args.limit, "shots": args.shots, "seed": args.seed, "temperature": args.temperature, "top_p": args.top_p,
        "repeats": args.repeats, "chat": args.chat, "max_tokens": args.max_tokens, "stride": args.stride,
        **({"data": said} if said else {}),
    }  # fmt: skip
    facts: dict[str, Any] = {"model": model.describe(), "settings": settings}
    facts["prompts"] = {task.name: [task.version, prompts_hash(items)] for task, items in ready}
    out = args.out or _free(Path(f"eval-{_safe(model.name)}.json"))
    began, tools, found = time.monotonic(), Tools(), {}
    with results.Progress(out, facts) as progress, _Bars() as bars:
        for task, items in ready:
            shown = bars.of(task.name)
            found[task.name] = _shots(args, task) | evaluate(task, items, model, progress, options, tools, shown)
        value = {
            "model": model.describe(), "settings": settings, "computed": model.computed(), "seconds": round(time.monotonic() - began, 3),
            "rorqual": _version(), "tasks": found,
        }  # fmt: skip
        results.write(out, value)
        failed = {name: int(one["failed"]) for name, one in found.items() if one["failed"]}
        if not failed:
            progress.finish()
    print(_table(found, args.published))
    print(f"\n{out}", file=sys.stderr)
    for name, count in failed.items():
        reason = next(item["failed"] for item in found[name]["items"] if "failed" in item)
        print(
            f"rorqual: {name}: {count} of {found[name]['n']} items got no answer and are in no mean; the first: {reason}", file=sys.stderr
        )
    if failed:
        print("rorqual: the same command again asks for these alone", file=sys.stderr)
    return 1 if failed else 0


def _free(out: Path) -> Path:
    """The result's place; ConfigError where a whole one lies there. One with failed items may be completed."""
    from rorqual.eval import results

    if out.exists() and not results.partial(out).exists():
        raise ConfigError(f"{out} is there already; name another file with --out, or remove it")
    return out


def _shots(args: argparse.Namespace, task: Task) -> dict[str, Any]:
    return {"shots": task.shots if args.shots is None else args.shots}


def _batch(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--batch ({text!r}) must be auto or a whole number of at least 1")
    return int(text)


def _model(args: argparse.Namespace) -> Model:
    if str(args.target).startswith(("http://", "https://")):
        return _server(args)
    from rorqual.cli.model_folder import load_folder
    from rorqual.eval.models import EngineModel
    from rorqual.inference.engine import Engine
    from rorqual.inference.prompts import end_ids

    loaded = load_folder(Path(args.target), args.tokenizer, weights=args.weights)
    for notice in loaded.notices:
        print(f"note: {notice}", file=sys.stderr)
    engine = Engine(loaded.model, loaded.tokenizer, end_ids=end_ids(loaded.origin, loaded.tokenizer))
    return EngineModel(engine, loaded.tokenizer, Path(args.target).resolve().name, window=args.window)


def _server(args: argparse.Namespace) -> Model:
    import os

    from rorqual.eval.remote import ServerModel
    from rorqual.inference.client import Client

    client = Client(args.target, api_key=os.environ.get(args.api_key_env), timeout=float(args.timeout))
    name = args.model
    if name is None:
        listed = client.get("/models").get("data")
        if not isinstance(listed, list) or not listed or not isinstance(listed[0], dict) or not isinstance(listed[0].get("id"), str):
            raise ConfigError(f"{args.target} lists no models; name one with --model")
        name = listed[0]["id"]
    return ServerModel(client, name, _batch(args.batch) or 8)


def _harness(args: argparse.Namespace, tasks: list[Task], data: Path | None, said: dict[str, str]) -> int:
    from rorqual.eval import harness, results
    from rorqual.eval.models import EngineModel
    from rorqual.eval.tasks import catalog

    if args.out:
        _free(args.out)
    model = _model(args)
    if not isinstance(model, EngineModel):
        raise ConfigError("--harness evaluates a model folder; lm-eval itself has `local-completions` for servers")
    out = args.out or _free(Path(f"lm-eval-{_safe(model.name)}.json"))
    facts = {"model": model.describe(), "harness": harness.version(), "seed": args.seed}
    with results.Progress(out, facts) as progress, _Bars() as bars:
        common = {"shots": args.shots, "limit": args.limit, "seed": args.seed, "progress": progress, "show": bars.kind}
        found = harness.evaluate(model, tasks, data, **common) if data else harness.named(model, catalog.expand(args.tasks), **common)
        results.write(
            out, {"model": model.describe(), "harness": found["harness"], "tasks": found["tasks"], **({"data": said} if said else {})}
        )
        progress.finish()
    rows = [
        [name, metric, f"{one['value']:.4f}", f"{one['stderr']:.4f}", str(one["n"])]
        for name, part in found["tasks"].items()
        for metric, one in part["metrics"].items()
    ]
    print(results.table(rows, ["task", "metric", "value", "stderr", "items"]))
    print(f"\n{out}", file=sys.stderr)
    return 0


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name) or "model"


def _version() -> str:
    from rorqual.cli.main import version

    return version()


# ---------------------------------------------------------------------- tables and bars


def _table(found: dict[str, Any], with_published: bool) -> str:
    from rorqual.eval import published
    from rorqual.eval.results import table

    rows = []
    for name, part in found.items():
        rates = [f"{part['truncated_rate']:.1%}", f"{part['unparseable_rate']:.1%}", str(part["failed"] + part["undecided"])]
        for metric, one in (part["metrics"] or {"-": {"value": None, "stderr": None, "n": 0}}).items():
            counts = f"{one['n']}/{part['n']}" if one["n"] != part["n"] else str(one["n"])
            rows.append([name, metric, str(part["shots"]), _number(one["value"]), _number(one["stderr"]), counts, *rates])
    text = table(rows, ["task", "metric", "shots", "value", "stderr", "items", "truncated", "unparseable", "unjudged"])
    return text + ("\n\n" + published.beside(found) if with_published else "")


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.4f}" if abs(value) < 1e5 else f"{value:.4g}"


class _Bars:
    """A bar per task on a terminal, else a line when a task is done."""

    def __enter__(self) -> _Bars:
        from rorqual.cli.progress import BuildProgress

        self._bars = BuildProgress().__enter__()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bars.__exit__(None, None, None)

    def kind(self, name: str, done: int, total: int) -> None:
        """Shows requests of a kind."""
        self._bars(name, done, total)

    def of(self, name: str) -> Any:
        """The function that shows a task's items done and in all."""
        return lambda done, total: self._bars(name, done, total)
