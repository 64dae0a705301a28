"""Run a whole recipe: data, tokenizer, pre-training, fine-tuning, reinforcement learning, evaluation, report.

rorqual run laptop                  # a second start goes on where the first one stopped
rorqual run laptop --out runs/mine --train.total-tokens 200000
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rorqual.cli import memory_check
from rorqual.cli.post_training import PostStages, sentence
from rorqual.errors import RunError

if TYPE_CHECKING:
    from rorqual.data.loader import PackedDataset
    from rorqual.train.hyperparams import RunConfig


def main(argv: list[str]) -> int:
    """Runs the verb: 0 when everything is done, 130 or 143 when a signal stopped it after saving. Raises RorqualError."""
    parser = argparse.ArgumentParser(
        prog="rorqual run", allow_abbrev=False, description="Run a whole recipe: data and tokenizer, pre-training, final validation, Hugging Face folder; then, where the recipe has them, "
        "supervised fine-tuning and GRPO (OUT/sft, OUT/grpo) and accuracy before and after each; results.json, report.html. "
        "An unfinished run is resumed, a finished one is left alone. Fields of the configuration can be given as for `rorqual pretrain`.",
    )  # fmt: skip
    parser.add_argument("recipe", metavar="RECIPE", help="name of a recipe, e.g. laptop, or the config.json of a run")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/NAME)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data folder; built there if it is missing (default: OUT/data)")
    parser.add_argument("--overwrite", action="store_true", help="start afresh in a folder that holds a run; its data stays")
    parser.add_argument("--no-post-training", action="store_true", help="stop after pre-training, whatever the recipe has behind it")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=JSON", help="set a field of the configuration")
    from rorqual.cli.pretrain import read_recipe, read_settings, split_overrides

    own, overrides = split_overrides(argv)
    args = parser.parse_args(own)
    from rorqual.recipes.post_training import post_training
    from rorqual.train.hyperparams import from_command_line

    run = read_recipe(args.recipe).with_(read_settings(args.set))
    run = from_command_line(run, overrides, prog="rorqual run") if overrides else run
    out = args.out or Path("runs") / run.name
    command = shlex.join(["rorqual", "run", *(word for word in argv if word != "--overwrite")])
    course = None if args.no_post_training else post_training(args.recipe)
    post = None if course is None else PostStages(course.placed(out), out)
    return _Pipeline(run, out, args.data or out / "data", args.overwrite, args.recipe, command, post).go()


class _Pipeline:
    """The stages of a recipe, each left out when what it makes is already there."""

    def __init__(self, run: RunConfig, out: Path, data: Path, overwrite: bool, recipe: str, command: str, post: PostStages | None) -> None:
        self.run, self.out, self.data, self.overwrite, self.recipe, self.command, self.post = (
            run,
            out,
            data,
            overwrite,
            recipe,
            command,
            post,
        )

    def go(self) -> int:
        """All stages in order; returns the exit code."""
        from rorqual.train.rundir import RunFolder

        stored = RunFolder(self.out)
        resume = stored.config.exists() and not self.overwrite
        if resume:
            stored.check_same(self.run)
            if (self.out / "results.json").is_file() and (self.out / "report.html").is_file():
                print(f"{self.out} is finished and left alone; its report is {self.out / 'report.html'}\nto start afresh: {self.command} --overwrite\nor choose another --out")  # fmt: skip
                return 0
        with stored:  # in use, or no run folder: refused before any work
            if not resume:
                stored.check_replaceable(self.overwrite)
        with self._stage("data"):
            self._build()
        dataset = self._open()
        if self.overwrite:
            with stored:  # the data stays, and so do its seconds
                self._write(self.out / "stages.json", {"data": self._stages()["data"]})
                if self.post is not None:
                    self.post.clear()
        memory_check.check_run(self.run)
        with self._stage("pretrain"):
            from rorqual.train.trainer import train

            result = train(self.run, self.out, data=dataset, resume_run=resume, overwrite=self.overwrite)
        if result.signal is not None:
            print(f"stopped at step {result.step}, saved; go on with: {self.command}", file=sys.stderr)
            return 128 + result.signal
        with self._stage("export"):
            self._export()
        accuracies: dict[str, Any] = {}
        if self.post is not None:
            signal = self.post.train(self._stage)
            if signal is not None:
                print(f"stopped, saved; go on with: {self.command}", file=sys.stderr)
                return 128 + signal
            with self._stage("evaluation"):
                accuracies = self.post.accuracy()
        with self._stage("results"):
            results = self._results(dataset, result.final) | accuracies
            self._write(self.out / "results.json", results)
        from rorqual.posttrain.report import sections
        from rorqual.train.report import write_report

        report = write_report(self.out, extra=sections(self.out))
        self._conclude(results, report)
        return 0

    # ------------------------------------------------------------------ stages

    def _build(self) -> None:
        """Builds the data unless it is there; refuses a folder that was built with other options."""
        from rorqual.train.records import to_plain

        index = self.data / "index.json"
        if index.is_file():
            from rorqual.data.folder import BuiltFolder

            BuiltFolder.open(self.data)  # refuses an index that is none
            options = json.loads(index.read_text(encoding="utf-8")).get("options", {})
            changed = {
                name: (options[name], value)
                for name, value in to_plain(self.run.build).items()
                if name in options and options[name] != value
            }
            if changed and self.data == self.out / "data":
                listed = "; ".join(f"build.{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items())
                raise RunError(f"{self.data} was built with other options: {listed}; delete it, give another --data, or keep the options")
            return
        from rorqual.cli.progress import BuildProgress
        from rorqual.data.build import build

        with BuildProgress() as progress:
            build(self.run.build, self.data, progress=progress)

    def _open(self) -> PackedDataset:
        from rorqual.data.loader import PackedDataset

        return PackedDataset(self.data, self.run.data, self.run.train.sequence_length, vocab_size=self.run.model.vocab_size)

    def _export(self) -> None:
        """Writes OUT/hf from the newest checkpoint, unless it is there."""
        if not (self.out / "hf" / "config.json").is_file():
            from rorqual.cli import export

            export.main([str(self.out), str(self.out / "hf"), "--tokenizer", str(self.data / "tokenizer")])

    def _results(self, dataset: PackedDataset, final: list[dict[str, Any]]) -> dict[str, Any]:
        """The figures of the run, each from what was measured or counted."""
        from rorqual.cli import doctor
        from rorqual.planner import flops, params

        train = self.run.train
        counts = params.count(self.run.model)
        raw = next(record for record in final if record["weights"] == "raw")
        average = next((record for record in final if record["weights"] == "ema"), None)
        text = dataset.validation(train.validation_source).text
        progress = _speed(self.out / "metrics.jsonl")
        index = json.loads((self.data / "index.json").read_text(encoding="utf-8"))
        stages = [{"name": name, "seconds": seconds} for name, seconds in self._stages().items()]
        return {
            "recipe": self.recipe, "name": self.run.name,
            "validation_bpb": raw["bpb"], "validation_loss": raw["loss"], "validation_source": raw["source"],
            "validation_tokens": raw["validation_tokens"], "validation_bytes": raw["validation_bytes"], "ema_validation": average,
            "gzip_bpb": 8 * len(gzip.compress(text, 9)) / len(text), "xz_bpb": 8 * len(lzma.compress(text)) / len(text),
            "mtp_acceptance": raw["mtp_acceptance"],
            **progress,
            "seconds": sum(stage["seconds"] for stage in stages), "stages": stages,
            "parameters_total": counts.total, "parameters_active": counts.active,
            "train_flops": progress["tokens"] * flops.train_flops_per_token(self.run.model, train.sequence_length, mtp=self.run.model.num_nextn_predict_layers > 0),
            "machine": {**doctor.machine(), **{f"torch_{key}": value for key, value in doctor.torch_build().items()}, **doctor.interpreter()},
            "data": {
                **{key: index.get(key) for key in ("fingerprint", "tokenizer", "vocab_size", "dtype", "sources", "rejected", "duplicates", "bytes_in", "default_corpus")},
                "epochs": dataset.epochs(progress["sequences"]),
            },
        }  # fmt: skip

    def _conclude(self, results: dict[str, Any], report: Path) -> None:
        print(
            f"\n{results['validation_bpb']:.3f} bits per byte on held-out {results['validation_source']} (gzip -9 {results['gzip_bpb']:.3f}, xz {results['xz_bpb']:.3f}), "
            f"MTP acceptance {100 * (results['mtp_acceptance'] or 0):.0f}%, {results['tokens_per_second']:,.0f} tokens/s, {results['seconds'] / 60:.1f} minutes\n"
            + ("" if self.post is None else sentence(results) + "\n")
            + f"report: {report}\n\ntry next:\n"
            f"  {shlex.join(['rorqual', 'generate', str(self.out), 'def fibonacci(n):'])}\n"
            + (
                f"  {shlex.join(['rorqual', 'inspect', str(self.out / 'hf')])}\n"
                if self.post is None
                else f"  {shlex.join(['rorqual', 'chat', str(self.out / 'grpo')])}\n"
            )
            + f"  {shlex.join(['rorqual', 'pretrain', '--init', str(self.out), '--data', str(self.data), '--out', f'{self.out}-longer'])}"
        )

    # ------------------------------------------------------------------ seconds per stage

    def _stages(self) -> dict[str, float]:
        path = self.out / "stages.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Adds the seconds of the block to the stage's, also when it is stopped, so that resumed work counts whole."""
        began = time.monotonic()
        try:
            yield
        finally:
            stages = self._stages()
            stages[name] = stages.get(name, 0.0) + time.monotonic() - began
            self._write(self.out / "stages.json", stages)

    def _write(self, path: Path, value: Any) -> None:
        from rorqual.train.rundir import write_atomic

        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _speed(metrics: Path) -> dict[str, Any]:
    """Tokens, sequences, steps, mean tokens per second and mean share of the ceiling over the time spent in optimiser steps."""
    last: dict[str, Any] = {"tokens": 0, "sequences": 0, "step": 0, "seconds": 0.0}
    shares = 0.0
    with metrics.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if row["kind"] == "train":
                shares += row["share_of_ceiling"] * (row["seconds"] - last["seconds"])
                last = row
    seconds = last["seconds"] or float("nan")
    return {
        "tokens": last["tokens"], "sequences": last["sequences"], "steps": last["step"], "skipped_steps": last.get("skipped_steps", 0),
        "tokens_per_second": last["tokens"] / seconds, "share_of_ceiling": shares / seconds, "training_seconds": last["seconds"],
    }  # fmt: skip
