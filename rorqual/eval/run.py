"""One task over one model: items in, records and metrics out, going on where a killed run stopped.

What could not be judged stays out of the means and is counted: `failed` where the model gave nothing, `undecided` where a checker could not
tell, `unparseable` where no answer could be read from the text (that one scores 0), `truncated` where an answer or a context was cut.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any

from rorqual.eval import metrics
from rorqual.eval.models import Asking, Failure, Generation, Likelihood, Model, Parts
from rorqual.eval.results import Progress, estimate
from rorqual.eval.task import ChoiceTask, GenerationTask, Item, Judgement, Task, Tools, prompts_hash, template_hash
from rorqual.eval.textbits import TextTask

AUTO_BATCH = 256
AUTO_CHARACTERS = 400_000
"""Items, and characters of their contexts, that a likelihood task scores together at most; then it writes."""

Show = Callable[[int, int], None]


@dataclass(frozen=True)
class Options:
    """What a user may change. `max_tokens` None: the task's own; `batch` None: up to 256 items; `passes` are the k of pass@k."""

    asking: Asking = Asking()
    max_tokens: int | None = None
    batch: int | None = None
    stride: int | None = None
    passes: tuple[int, ...] = (1, 10, 100)


def evaluate(
    task: Task, items: Sequence[Item], model: Model, progress: Progress, options: Options, tools: Tools, show: Show
) -> dict[str, Any]:
    """Runs what is missing and returns the task's part of the run's file; what failed before is asked for again.

    `show` is called with what is done and what there is, in items, or in bytes where the items are texts.
    """
    known = {name for name, record in progress.records.get(task.name, {}).items() if "failed" not in record}
    weights = {item.id: len(item.prompt.encode()) if isinstance(task, TextTask) else 1 for item in items}
    done, total = sum(weights[item.id] for item in items if item.id in known), sum(weights.values())
    show(done, total)
    if isinstance(task, GenerationTask):
        asking = replace(options.asking, max_tokens=options.max_tokens or task.max_tokens, stop=task.stop)
        todo = [item for item in items if item.id not in known]
        if todo and task.runs_code:
            _ = tools.sandbox  # refused before the first item, not after it
        batches: Iterable[list[dict[str, Any]]] = _generated(task, todo, model, asking, tools)
    elif isinstance(task, TextTask):
        batches = _texts(task, items, known, model, options, progress, lambda more: show(done + more, total))
    else:
        batches = _scored(task, items, known, model, options)
    for records in batches:
        progress.put(task.name, records)
        done += sum(weights[record["id"]] for record in records)
        show(done, total)
    records = [progress.records[task.name][item.id] for item in items]
    return summary(task, items, records, options)


def _batches(items: Sequence[Item], known: AbstractSet[str], most: int) -> Iterator[Sequence[Item]]:
    """Neighbours with something to do. The cuts do not depend on what is known, so a resumed run computes what a whole one does."""
    start, size = 0, 0
    for place, item in enumerate(items):
        own = len(item.prompt) + (len(item.pairs[0][0]) if item.pairs else 0)
        if place > start and (place - start == most or size + own > AUTO_CHARACTERS):
            if any(one.id not in known for one in items[start:place]):
                yield items[start:place]
            start, size = place, 0
        size += own
    if any(one.id not in known for one in items[start:]):
        yield items[start:]


# ---------------------------------------------------------------------- likelihoods


def _scored(task: Task, items: Sequence[Item], known: AbstractSet[str], model: Model, options: Options) -> Iterator[list[dict[str, Any]]]:
    for batch in _batches(items, known, options.batch or AUTO_BATCH):
        found = iter(model.likelihood([pair for item in batch for pair in item.pairs]))
        records = [_scored_record(task, item, [next(found) for _ in item.pairs]) for item in batch]
        yield [record for record in records if record["id"] not in known]


def _scored_record(task: Task, item: Item, found: Sequence[Likelihood | Failure]) -> dict[str, Any]:
    record: dict[str, Any] = {"id": item.id}
    failures = [one.reason for one in found if isinstance(one, Failure)]
    if failures:
        return record | {"failed": failures[0]}
    scores = [one for one in found if isinstance(one, Likelihood)]
    values = record["logprobs"] = [one.logprob for one in scores]
    if any(one.cut for one in scores):
        record["truncated"] = True
    if not isinstance(task, ChoiceTask):
        return record | {"greedy": scores[0].greedy, "tokens": scores[0].tokens, "scores": {"acc": float(scores[0].greedy)}}
    sizes = [len(option.removeprefix(task.target_delimiter).encode()) for _, option in item.pairs]
    gold = task.gold(item.row)
    picked = _best(values)
    normed = _best([value / max(1, size) for value, size in zip(values, sizes, strict=True)])
    chosen = {"acc": float(picked == gold)} | ({"acc_norm": float(normed == gold)} if task.contexts is None else {})
    return record | {"gold": gold, "picked": picked, "scores": chosen}


def _best(values: Sequence[float]) -> int:
    """The first of the largest."""
    return max(range(len(values)), key=lambda place: (values[place], -place))


def _texts(
    task: Task, items: Sequence[Item], known: AbstractSet[str], model: Model, options: Options, progress: Progress, told: Callable[[int], None]
) -> Iterator[list[dict[str, Any]]]:  # fmt: skip
    """Whole documents; the windows of long ones are written as they come, so that a killed run goes on within a document."""
    place = f"{task.name} windows"
    for batch in _batches(items, known, options.batch or 8):
        size = sum(len(item.prompt.encode()) for item in batch if item.id not in known)
        numbers = {item.id: number for number, item in enumerate(batch)}
        before = [one for one in progress.records.get(place, {}).values() if one["text"] in numbers and one["nll"] is not None]
        parts: Parts = {(numbers[one["text"]], one["window"]): one["nll"] for one in before}
        written = set(parts)

        def heard(share: float, batch: Sequence[Item] = batch, size: int = size, parts: Parts = parts, written: set[Any] = written) -> None:
            fresh = [key for key in parts if key not in written] if share < 1 else []
            if fresh:
                records = [{"text": batch[text].id, "window": window, "nll": parts[text, window]} for text, window in fresh]
                progress.put(place, [{"id": f"{one['text']}#{one['window']}", **one} for one in records])
                written.update(fresh)
            told(int(share * size))

        found = model.text_scores([item.prompt for item in batch], options.stride, heard, parts)
        records: list[dict[str, Any]] = []
        for item, one in zip(batch, found, strict=True):
            if isinstance(one, Failure):
                records.append({"id": item.id, "failed": one.reason})
            else:
                records.append({"id": item.id, "nll": one.nll, "bytes": one.bytes, "tokens": one.tokens})
        yield [record for record in records if record["id"] not in known]


# ---------------------------------------------------------------------- answers


def _generated(task: GenerationTask, items: Sequence[Item], model: Model, asking: Asking, tools: Tools) -> Iterator[list[dict[str, Any]]]:
    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        judging: dict[Future[list[Judgement]], tuple[Item, list[Generation]]] = {}
        again: list[tuple[Item, list[Generation], list[Judgement], str]] = []
        for number, found in model.generate([(f"{task.name}/{item.id}", item.prompt) for item in items], asking):
            item = items[number]
            if isinstance(found, Failure):
                yield [{"id": item.id, "failed": found.reason}]
                continue
            judging[pool.submit(_judged, task, item, found, tools)] = (item, found)
            for future in [one for one in judging if one.done()]:
                yield from _sorted_out(task, future.result(), *judging.pop(future), again)
        for future in as_completed(list(judging)):
            yield from _sorted_out(task, future.result(), *judging.pop(future), again)
        if again:
            yield from _second(task, again, model, asking, tools, pool)


def _judged(task: GenerationTask, item: Item, found: Sequence[Generation], tools: Tools) -> list[Judgement]:
    return [task.judge(item.row, one.text, tools) for one in found]


def _sorted_out(
    task: GenerationTask, verdicts: list[Judgement], item: Item, found: list[Generation], again: list[Any]
) -> Iterator[list[dict[str, Any]]]:
    """The record, unless the task gives this item a second attempt."""
    attempt = task.again(item.row, item.prompt, found[0].text, verdicts[0]) if task.again and verdicts[0].score != 1.0 else None
    if attempt is not None:
        again.append((item, found, verdicts, attempt.prompt))
    else:
        yield [_answer_record(task, item, found, verdicts)]


def _second(
    task: GenerationTask, again: Sequence[Any], model: Model, asking: Asking, tools: Tools, pool: ThreadPoolExecutor
) -> Iterator[list[dict[str, Any]]]:
    prompts = [(f"{task.name}/{item.id}/2", prompt) for item, _, _, prompt in again]
    for number, found in model.generate(prompts, replace(asking, n=1)):
        item, first, before, _ = again[number]
        if isinstance(found, Failure):
            yield [{"id": item.id, "failed": found.reason}]
            continue
        verdict = pool.submit(_judged, task, item, found, tools).result()
        yield [_answer_record(task, item, first, before, (found[0], verdict[0]))]


def _answer_record(
    task: GenerationTask, item: Item, found: Sequence[Generation], verdicts: Sequence[Judgement],
    second: tuple[Generation, Judgement] | None = None,
) -> dict[str, Any]:  # fmt: skip
    record: dict[str, Any] = {"id": item.id, "outputs": [one.text for one in found], "answers": [one.answer for one in verdicts]}
    record["finish"] = [one.finish_reason for one in found]
    if any(one.finish_reason == "length" or one.prompt_cut for one in found):
        record["truncated"] = True
    if any(one.answer is None for one in verdicts):
        record["unparseable"] = sum(one.answer is None for one in verdicts)
    notes = [one.note for one in verdicts if one.note]
    if notes:
        record["notes"] = notes[:4]
    tries = [one.score for one in verdicts]
    record["tries"] = tries
    decided = [score for score in tries if score is not None]
    if len(decided) < len(tries):
        record["undecided"] = len(tries) - len(decided)
    if not decided:
        return record
    scores = {task.metric: sum(decided) / len(decided)}
    for name in dict.fromkeys(name for one in verdicts for name in one.parts):
        scores[name] = sum(one.parts.get(name, 0.0) for one in verdicts) / len(verdicts)
    if len(verdicts) > 1:
        chosen = metrics.majority([one.answer for one in verdicts])
        scores["maj"] = next((one.score or 0.0 for one in verdicts if one.answer == chosen and chosen is not None), 0.0)
    if task.again is not None:
        scores |= {"pass_rate_1": scores[task.metric], "pass_rate_2": max(scores[task.metric], 0.0)}
        if second is not None:
            record |= {"second": second[0].text, "second_note": second[1].note}
            scores[task.metric] = scores["pass_rate_2"] = max(scores["pass_rate_1"], second[1].score or 0.0)
            scores |= {name: min(scores.get(name, 1.0), value) for name, value in second[1].parts.items()}
    return record | {"scores": scores}


# ---------------------------------------------------------------------- sums


def summary(task: Task, items: Sequence[Item], records: Sequence[dict[str, Any]], options: Options) -> dict[str, Any]:
    """A task's part of the run's file: facts, metrics, counts and every record."""
    found: dict[str, Any] = {}
    if isinstance(task, TextTask):
        read = [one for one in records if "nll" in one]
        sizes = [one["bytes"] for one in read]
        found["bits_per_byte"] = estimate(metrics.bits_per_byte([one["nll"] for one in read], sizes)) | {"bytes": sum(sizes)}
    for name in dict.fromkeys(name for one in records for name in one.get("scores", {})):
        values = [one["scores"][name] for one in records if name in one.get("scores", {})]
        shown: dict[str, Any] = estimate(metrics.mean(values))
        if set(values) <= {0.0, 1.0}:
            shown["interval"] = list(metrics.wilson(sum(values), len(values)))
        found[_label(task, name, options)] = shown
    if task.kind == "continuation":
        found["perplexity"] = estimate(metrics.perplexity([one["logprobs"][0] for one in records if "logprobs" in one]))
    if options.asking.n > 1 and isinstance(task, GenerationTask):
        found |= _passes(records, options)
    out: dict[str, Any] = {
        "version": task.version, "kind": task.kind, "n": len(items), "template_sha256": template_hash(task, items),
        "prompts_sha256": prompts_hash(items), "metrics": found,
    }  # fmt: skip
    if task.group is not None and not isinstance(task, TextTask):
        out["groups"] = _groups(task, items, records)
    tries = max(1, sum(len(one.get("outputs", [1])) for one in records))
    out |= {
        "failed": sum("failed" in one for one in records),
        "undecided": sum(one.get("undecided", 0) for one in records),
        "truncated_rate": sum(bool(one.get("truncated")) for one in records) / max(1, len(records)),
        "unparseable_rate": sum(one.get("unparseable", 0) for one in records) / tries,
    }
    first = items[0] if items else None
    return out | {"first_prompt": (first.prompt or first.pairs[0][0]) if first else "", "items": list(records)}


def _label(task: Task, name: str, options: Options) -> str:
    return f"maj@{options.asking.n}" if name == "maj" else name


def _passes(records: Sequence[dict[str, Any]], options: Options) -> dict[str, Any]:
    """pass@k over items whose every answer was judged right or wrong."""
    whole = [one["tries"] for one in records if "tries" in one and all(score in (0.0, 1.0) for score in one["tries"])]
    return {
        f"pass@{k}": estimate(metrics.mean([metrics.pass_at_k(len(tries), int(sum(tries)), k) for tries in whole]))
        for k in options.passes
        if k <= options.asking.n and whole
    }


def _groups(task: Task, items: Sequence[Item], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    assert task.group is not None
    values: dict[str, list[float]] = {}
    for item, record in zip(items, records, strict=True):
        for value in list(record.get("scores", {}).values())[:1]:
            values.setdefault(task.group(item.row), []).append(value)
    return {name: estimate(metrics.mean(some)) for name, some in sorted(values.items())}
