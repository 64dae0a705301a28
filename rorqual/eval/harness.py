"""The engine as a model of lm-evaluation-harness, and our tasks as its tasks (extra `eval`; lm-eval 0.4).

`HarnessModel` is a `TemplateLM`: likelihoods with the boundary of eval/encode.py, rolling likelihoods in disjoint windows as lm-eval's own
models, answers from the engine's requests. `evaluate` gives our rows and templates to lm-eval, which builds prompts, asks and counts by
itself; without a data folder the names are lm-eval's own tasks, whose data come from the Hugging Face hub. With a `Progress` every answer is
on disk under a hash of its request, so a run that was killed computes only what it lacks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rorqual.errors import ConfigError, DataError, MissingExtraError
from rorqual.eval import metrics
from rorqual.eval.encode import fitted
from rorqual.eval.models import Asking, EngineModel, Failure, Likelihood, TextScore
from rorqual.eval.results import Progress
from rorqual.eval.task import ChoiceTask, GenerationTask, LastWordTask, Row, Task, Tools

try:
    import lm_eval
    from lm_eval.api.model import TemplateLM
except ImportError as error:
    raise MissingExtraError("--harness lm-eval", "lm-eval", "eval") from error

MOST_TOGETHER = 512
"""Likelihood requests that are scored before they are written."""
Show = Callable[[str, int, int], None]
_NOT_OURS = ("do_sample", "temperature", "until", "max_gen_toks", "top_p")


class HarnessModel(TemplateLM):
    """An EngineModel under lm-eval's interface; `max_gen_toks` where a task names none.

    `progress` keeps answers over a restart, its facts say of which model; `show` is called with a kind of request, those done, and all.
    """

    def __init__(
        self, model: EngineModel, max_gen_toks: int = 256, seed: int = 0, progress: Progress | None = None, show: Show | None = None
    ) -> None:
        super().__init__()
        self.model, self.max_gen_toks, self._seed, self._progress, self._show = model, max_gen_toks, seed, progress, show

    @property
    def eot_token_id(self) -> int:
        """The id that ends a document."""
        return int(self.model.engine.model.config.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The id that begins a document: BOS where the model was trained with it."""
        return self.model.encoder.first[-1]

    @property
    def max_length(self) -> int:
        """Tokens of one forward."""
        return self.model.window

    @property
    def tokenizer_name(self) -> str:
        """What a cache of prompts is kept under."""
        return self.model.tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text; BOS before it unless `add_special_tokens` is False, where the model was trained with it."""
        ids = self.model.tokenizer.encode(string)
        start = self.model.encoder.start
        return ids if add_special_tokens is False or ids[: len(start)] == start else [*start, *ids]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that came with the tokenizer, "" where messages are rendered in DeepSeek's own style."""
        return self.model.tokenizer.chat_template or ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as the text that the chat prompt stands for."""
        from rorqual.tokenizer import chat, templates

        tokenizer, style = self.model.tokenizer, templates.style_of(self.model.tokenizer)
        if style == "template":
            template = tokenizer.chat_template or ""
            ids = templates.render_template(template, chat_history, tokenizer, add_generation_prompt=add_generation_prompt).ids
        else:
            ids = chat.render(chat_history, tokenizer, style=style, add_generation_prompt=add_generation_prompt).ids  # type: ignore[arg-type]
        return tokenizer.decode(ids)

    # ------------------------------------------------------------------ what lm-eval asks

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability, greedy) of each request's (context, continuation)."""
        return self._scored("loglikelihood", [list(one.args) for one in requests], self._likelihoods)

    def _likelihoods(self, pairs: Sequence[Any]) -> list[tuple[float, bool]]:
        found = self.model.likelihood([(context, continuation) for context, continuation in pairs])
        return [(one.logprob, one.greedy) for one in found if isinstance(one, Likelihood)]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """The same from ids; what does not fit is cut on the left."""
        return self._scored("loglikelihood of ids", [[list(context), list(end)] for _, context, end in requests], self._of_ids)

    def _of_ids(self, pairs: Sequence[Any]) -> list[tuple[float, bool]]:
        pieces, counts = [], []
        for context, continuation in pairs:
            some, _ = fitted([*context, *continuation], len(context), self.model.window)
            pieces += some
            counts.append(len(some))
        scores = iter(self.model.scorer.score(pieces))
        out = []
        for count in counts:
            parts = [next(scores) for _ in range(count)]
            out.append((sum(sum(part.logprobs) for part in parts), all(part.greedy for part in parts)))
        return out

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, in windows that do not overlap."""
        return [value for value, _ in self._scored("rolling likelihood", [list(one.args[:1]) for one in requests], self._rolling, 8)]

    def _rolling(self, texts: Sequence[Any]) -> list[tuple[float, bool]]:
        found = self.model.text_scores([text for (text,) in texts], stride=self.model.window)
        return [(-one.nll, False) for one in found if isinstance(one, TextScore)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Each request's answer up to its stop strings; ConfigError for a setting that the engine does not know."""
        answers: dict[int, str] = {}
        groups: dict[Asking, list[int]] = {}
        keys = []
        for number, one in enumerate(requests):
            asking = self._asking(dict(one.args[1]))
            groups.setdefault(asking, []).append(number)
            keys.append(_key([one.args[0], repr(asking), number if asking.temperature else 0]))  # a draw depends on the request's number
        for asking, numbers in groups.items():
            answers |= {number: kept[0] for number in numbers if (kept := self._kept("answer", keys[number])) is not None}
            todo = [number for number in numbers if number not in answers]
            for place, found in self.model.generate([(f"{number}", requests[number].args[0]) for number in todo], asking):
                if isinstance(found, Failure):
                    raise ConfigError(found.reason)
                answers[todo[place]] = found[0].text
                self._keep("answer", {keys[todo[place]]: [found[0].text]})
                self._shown("answer", len(answers), len(requests))
        return [answers[number] for number in range(len(requests))]

    # ------------------------------------------------------------------ what is kept

    def _scored(
        self, kind: str, asked: Sequence[Any], compute: Callable[[Sequence[Any]], list[tuple[float, bool]]], most: int = MOST_TOGETHER
    ) -> list[tuple[float, bool]]:
        """In batches whose cuts do not depend on what is known, so that a run that goes on computes what a whole one does."""
        out: list[tuple[float, bool]] = []
        for start in range(0, len(asked), most):
            some = asked[start : start + most]
            keys = [_key(one) for one in some]
            kept = [self._kept(kind, key) for key in keys]
            if any(one is None for one in kept):
                found = compute(some)
                self._keep(kind, {key: list(one) for key, one in zip(keys, found, strict=True)})
            else:
                found = [(-math.inf if one[0] is None else one[0], one[1]) for one in kept if one is not None]
            out += found
            self._shown(kind, len(out), len(asked))
        return out

    def _kept(self, kind: str, key: str) -> list[Any] | None:
        record = self._progress.records.get(kind, {}).get(key) if self._progress is not None else None
        return None if record is None else record["value"]

    def _keep(self, kind: str, values: Mapping[str, list[Any]]) -> None:
        if self._progress is not None:
            self._progress.put(kind, [{"id": key, "value": value} for key, value in values.items()])

    def _shown(self, kind: str, done: int, total: int) -> None:
        if self._show is not None:
            self._show(kind, done, total)

    def _asking(self, given: dict[str, Any]) -> Asking:
        unknown = [name for name in given if name not in _NOT_OURS]
        if unknown:
            raise ConfigError(f"generation settings {', '.join(unknown)} are unknown here; there are {', '.join(_NOT_OURS)}")
        until = given.get("until") or []
        stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
        temperature = float(given.get("temperature") or 0.0) if given.get("do_sample", True) else 0.0
        return Asking(int(given.get("max_gen_toks") or self.max_gen_toks), stop, temperature, float(given.get("top_p") or 1.0), self._seed)


def _key(value: Any) -> str:
    """A request's name on disk."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")).hexdigest()[:32]


# ---------------------------------------------------------------------- our tasks under lm-eval


def evaluate(
    model: EngineModel, tasks: Sequence[Task], data: Path, *, shots: int | None = None, limit: int | None = None, seed: int = 0,
    progress: Progress | None = None, show: Show | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Our tasks through lm-eval: {"harness": version, "tasks": {name: {"metrics": ..., "items": ...}}}; nothing is downloaded."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found: dict[str, Any] = {}
    for task in tasks:
        count = task.shots if shots is None else shots
        with _only_errors():
            theirs = _as_theirs(task, data, count)
            result = lm_eval.evaluate(
                lm=HarnessModel(model, seed=seed, progress=progress, show=show),
                task_dict={task.name: theirs},
                limit=limit,
                bootstrap_iters=0,
                log_samples=True,
            )
        found[task.name] = _read(task, result, count)
    return {"harness": version(), "tasks": found}


def version() -> str:
    """lm-eval's name and version."""
    return f"lm-eval {lm_eval.__version__}"


@contextmanager
def _only_errors() -> Iterator[None]:
    """lm-eval warns of each field that it fills by itself."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def named(
    model: EngineModel, names: Sequence[str], *, shots: int | None = None, limit: int | None = None, seed: int = 0,
    progress: Progress | None = None, show: Show | None = None,
) -> dict[str, Any]:  # fmt: skip
    """lm-eval's own tasks by their names there; it fetches their data."""
    try:
        lm = HarnessModel(model, seed=seed, progress=progress, show=show)
        result = lm_eval.simple_evaluate(model=lm, tasks=list(names), num_fewshot=shots, limit=limit)
    except (ConnectionError, FileNotFoundError, KeyError) as error:  # datasets and lm-eval say so: no network, no such data, no such task
        raise DataError(
            f"lm-eval could not get its tasks {', '.join(names)} ({type(error).__name__}: {error}); it fetches their data from the network: name "
            "tasks that it knows, or give the files with --data PATH"
        ) from None
    tasks = {}
    for name, values in result["results"].items():
        n = result["n-samples"].get(name, {}).get("effective", 0)
        tasks[name] = {"metrics": _metrics(values, n), "n": n, "shots": result["n-shot"].get(name)}
    return {"harness": version(), "tasks": tasks}


def _as_theirs(task: Task, data: Path, shots: int) -> Any:
    """A task of lm-eval over our rows: it puts description, shots and question together itself. Rows travel as JSON text."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    if task.group is not None or not isinstance(task.description, str) or task.shot is not None:
        raise ConfigError(
            f"task {task.name} chooses shots by subject, which lm-eval does by a task for each; name lm-eval's own tasks, without --data"
        )
    rows = task.rows(data)
    pool = task.shot_rows(data) if shots and task.examples is None else None
    if shots and task.examples is not None:
        pool = [{**row, "_id": f"shot {number}"} for number, row in enumerate(task.examples(rows[0]))]
    splits = {"test": rows} | ({"shots": pool} if pool else {})
    made = {
        name: datasets.Dataset.from_list([{"_id": row["_id"], "row": json.dumps(row)} for row in some]) for name, some in splits.items()
    }
    split = "shots" if pool else "test"
    config: dict[str, Any] = {
        "task": task.name, "custom_dataset": lambda **_: made, "test_split": "test", "num_fewshot": shots,
        "doc_to_text": _of(task.question), "doc_to_target": _of(task.answer), "target_delimiter": task.target_delimiter,
        "fewshot_delimiter": task.delimiter, "description": task.description,
    }  # fmt: skip
    if shots:
        config |= {"fewshot_split": split, "fewshot_config": {"sampler": "first_n", "split": split}}
    if isinstance(task, ChoiceTask):
        options = task.options
        config |= {"output_type": "multiple_choice", "doc_to_choice": _of(lambda row: list(options(row))), "doc_to_target": _of(task.gold)}
        if task.contexts is not None:
            contexts = task.contexts
            config |= {
                "doc_to_text": _of(task.gold),
                "doc_to_target": _of(task.answer),
                "doc_to_choice": _of(lambda row: list(contexts(row))),
            }
        config["metric_list"] = [{"metric": "acc"}] + ([{"metric": "acc_norm"}] if task.contexts is None else [])
    elif isinstance(task, LastWordTask):  # lm-eval puts no delimiter before what it scores
        delimiter, answer = task.target_delimiter, task.answer
        config |= {"doc_to_target": _of(lambda row: delimiter + answer(row)), "target_delimiter": ""}
        config |= {"output_type": "loglikelihood", "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}]}
    elif isinstance(task, GenerationTask):
        judge, metric, tools = task.judge, task.metric, Tools()
        config |= {
            "output_type": "generate_until",
            "generation_kwargs": {"until": list(task.stop), "max_gen_toks": task.max_tokens, "do_sample": False},
            "process_results": lambda doc, answers: {metric: judge(json.loads(doc["row"]), answers[0], tools).score or 0.0},
            "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
        }
    else:
        raise ConfigError(f"task {task.name} has no form in lm-eval here; run it without --harness")
    return ConfigurableTask(config=config)


def _of(function: Callable[[Row], Any]) -> Callable[[Mapping[str, str]], Any]:
    """A function of a row as one of lm-eval's document."""
    return lambda doc: function(json.loads(doc["row"]))


def _read(task: Task, result: dict[str, Any], shots: int) -> dict[str, Any]:
    samples = sorted(result["samples"][task.name], key=lambda one: one["doc_id"])
    items = []
    for one in samples:
        record: dict[str, Any] = {"id": one["doc"]["_id"], "prompt": one["arguments"][0][0]}
        if isinstance(task, GenerationTask):
            record["outputs"] = list(one["resps"][0])
        else:
            record["logprobs"] = [float(part[0][0]) for part in one["resps"]]
        record["scores"] = {name: float(one[name]) for name in one["metrics"] if isinstance(one.get(name), int | float)}
        items.append(record)
    shown = {}
    for name, value in _metrics(result["results"][task.name], len(items)).items():  # lm-eval's standard errors are of these formulas
        scores = [one["scores"][name] for one in items if name in one["scores"]]
        error = metrics.perplexity([one["logprobs"][0] for one in items]) if name == "perplexity" else metrics.mean(scores)
        shown[name] = {**value, "stderr": error.stderr}
    return {"shots": shots, "n": len(items), "metrics": shown, "items": items}


def _metrics(found: dict[str, Any], n: int) -> dict[str, Any]:
    """lm-eval's "acc,none" and "acc_stderr,none" as value and standard error."""
    out = {}
    for name, value in sorted(found.items()):
        metric, _, kind = name.partition(",")
        if kind and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = found.get(f"{metric}_stderr,{kind}")
            label = metric if kind == "none" else f"{metric},{kind}"
            out[label] = {"value": float(value), "stderr": float(error) if isinstance(error, int | float) else float("nan"), "n": n}
    return out
