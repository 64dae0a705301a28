"""What a whole recipe's report tells of post-training: accuracy before and after each stage, fine-tuning's loss, the run of GRPO.

    train.report.write_report(run, extra=report.sections(Path(run)))

Reads results.json, sft/metrics.jsonl and grpo/ of the run folder; what is not there becomes a named gap. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rorqual.html.numbers import duration, finite, grouped, short
from rorqual.html.page import Html, Section, bars, card, folded, gap, grid, join, table, tag, tile
from rorqual.html.plots import Lines, Series, figure
from rorqual.posttrain import grpo_report
from rorqual.train.history import History, read_history

MODELS = (("pretrained", "pre-trained"), ("sft", "after SFT"), ("grpo", "after GRPO"))


def sections(run: Path) -> list[Section]:
    """Accuracy, fine-tuning and reinforcement learning of a run folder; [] where it has none of them."""
    if not (run / "sft").is_dir() and not (run / "grpo").is_dir():
        return []
    found = [
        Section("accuracy", "Accuracy", _accuracy(run), "Right answers on problems that no stage has seen."),
        Section("sft", "Supervised fine-tuning", _sft(run / "sft"), "Worked answers, learned by example."),
    ]  # fmt: skip
    return found + (grpo_report.sections(run / "grpo") if (run / "grpo" / "metrics.jsonl").is_file() else [])


def _accuracy(run: Path) -> Html:
    try:
        results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        results = {}
    about = results.get("post_training") if isinstance(results, Mapping) else None
    if not isinstance(about, Mapping):
        return gap("Accuracy", "post_training is not in results.json; it is measured when the last stage is done.")
    rows, parts, decoded = [], [], list[str]()
    for key, name in MODELS:
        value, error = finite(results.get(f"accuracy_{key}")), finite(results.get(f"accuracy_{key}_stderr"))
        if value is not None:
            greedy = finite(results.get(f"accuracy_{key}_greedy"))
            decoded += [] if greedy is None else [f"{name} {100 * greedy:.1f} %"]
            rows.append((name, value, f"{100 * value:.1f} % ± {100 * error:.1f}" if error is not None else f"{100 * value:.1f} %"))
    short = about.get("short_percent")
    note = (
        f"{grouped(about.get('problems', 0))} problems ({', '.join(about.get('kinds', ()))}, numbers of at most {about.get('max_digits')} digits); "
        f"{about.get('samples')} answers to each, drawn at temperature {about.get('temperature')}, ± is the standard error; decoded greedily: "
        f"{', '.join(decoded) or 'not measured'}; the pre-trained model is asked as its corpus asks, the others in a conversation"
        + (f"; {short} % of the examples of fine-tuning answer at once, without working" if short else "")
    )
    parts.append(card("Accuracy", bars(rows, accent=len(rows) - 1, top=1.0), tag("p", note), wide=True))
    examples = about.get("examples")
    if isinstance(examples, Mapping):
        parts += [card(f"Answers {name}", _examples(examples.get(key)), wide=True) for key, name in MODELS if examples.get(key)]
    return grid(*parts)


def _examples(answers: Any) -> Html:
    rows = [
        (str(one.get("question")), str(one.get("gold")), _verdict(one.get("right")), tag("pre", str(one.get("text"))[:1500], dir="ltr"))
        for one in answers if isinstance(one, Mapping)
    ]  # fmt: skip
    return folded(f"{len(rows)} answers", table(("question", "answer", "verdict", "text"), rows))


def _verdict(right: Any) -> str:
    return "right" if right is True else "wrong" if right is False else "not judged"


def _sft(folder: Path) -> Html:
    history = read_history(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else History()
    rows = history.train
    if not rows:
        return gap("Fine-tuning", "There is no line of kind train in sft/metrics.jsonl.")
    series = []
    for colour, (key, name) in enumerate((("main_loss", "main"), ("mtp_loss", "MTP")), start=1):
        points = [
            (step, value) for row in rows if (step := finite(row.get("step"))) is not None and (value := finite(row.get(key))) is not None
        ]
        if points:
            series.append(Series(name, [x for x, _ in points], [y for _, y in points], colour))
    last = rows[-1]
    tiles = [tile("Steps", grouped(last.get("step") or 0))]
    for label, key, form in (("Tokens", "tokens", short), ("Time", "seconds", duration)):
        value = finite(last.get(key))
        if value is not None:
            tiles.append(tile(label, form(value)))
    packed = next((value for event in history.events if (value := finite(event.get("packing_efficiency"))) is not None), None)
    if packed is not None:
        tiles.append(tile("Packing", f"{100 * packed:.1f} %", "of the places in the rows hold a token"))
    loss = (
        figure(Lines("Loss of learned tokens", series, note="Mean negative log-likelihood in nats.", zero=True, wide=True))
        if series
        else gap("Loss", "sft/metrics.jsonl has no losses.")
    )
    return join([tag("div", *tiles, class_="tiles"), grid(loss)])
