"""The report of a run of GRPO: metrics.jsonl and answers.jsonl of its folder as one self-contained HTML page, or as sections of another.

    write_report("runs/laptop-grpo")                    # report.html in the folder
    sections(Path("runs/laptop-grpo"))                  # for a page that tells of more

Answers come from a model and are shown as text only. Every rollout is shown while there are at most `ROLLOUTS` and they take at most `ROOM`
characters of the page, compressed; of more, as many evenly chosen, and the page says where the rest is. What was not recorded becomes a named gap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rorqual.errors import ConfigError, RunError
from rorqual.html.numbers import duration, finite, grouped, short
from rorqual.html.page import Html, Section, card, document, folded, gap, grid, join, packed, pairs, table, tag, tile, write
from rorqual.html.plots import Lines, Series, figure
from rorqual.posttrain.answers import read_answers
from rorqual.posttrain.presets import GRPOConfig, formula, preset
from rorqual.train.history import Row, read_history
from rorqual.train.records import changes, from_plain

ROLLOUTS = 1000
ROOM = 2_500_000
_TEXT = 1500


def write_report(run: str | Path, out: Path | None = None) -> Path:
    """Writes the page (default: `report.html` in the run folder) and returns its path; RunError when the folder holds no run of GRPO."""
    folder = Path(run)
    if not (folder / "metrics.jsonl").is_file():
        raise RunError(f"{folder} holds no run: it has no metrics.jsonl; give the folder that grpo wrote")
    target = folder / "report.html" if out is None else out
    footer = "Every figure on this page is read from config.json, metrics.jsonl and answers.jsonl in the folder of the run."
    write(target, document(folder.resolve().name, sections(folder), "Report of reinforcement learning", "", footer))
    return target


def sections(folder: Path) -> list[Section]:
    """Learning, answers and settings of a run."""
    history = read_history(folder / "metrics.jsonl")
    rows = history.train
    return [
        Section("rl", "Reinforcement learning", join([_tiles(rows), _curves(rows)]), "How rewards rose, on questions drawn anew for every rollout."),
        Section("answers", "Answers", _answers(folder), "What the model wrote, what each answer was paid by component, and its advantage in its group."),
        Section("rl-settings", "Objective", _settings(folder), "What was maximised, with its numbers."),
    ]  # fmt: skip


# ---------------------------------------------------------------------- figures


def _tiles(rows: Sequence[Row]) -> Html:
    if not rows:
        return gap("Steps", "There is no line of kind train in metrics.jsonl.")
    means = [value for row in rows if (value := finite(row.get("reward_mean"))) is not None]
    tenth = max(1, len(means) // 10)
    last = rows[-1]
    tiles = [tile("Steps", grouped(last.get("step") or 0))]
    if means:
        first, final = sum(means[:tenth]) / tenth, sum(means[-tenth:]) / tenth
        tiles.insert(0, tile("Mean reward", f"{final:.3f}", f"over the last tenth of the steps; {first:.3f} over the first"))
    for label, key, form in (("Answers", "answers", short), ("Tokens sampled", "tokens", short), ("Time", "seconds", duration)):
        value = finite(last.get(key))
        if value is not None:
            tiles.append(tile(label, form(value)))
    gaps = [value for row in rows if (value := finite(row.get("logprob_gap_max"))) is not None]
    if gaps:
        tiles.append(tile("Engine and trainer", f"{max(gaps):.1e}", "largest difference of a token's log-probability"))
    return tag("div", *tiles, class_="tiles")


def _curves(rows: Sequence[Row]) -> Html:
    reward = [_series(rows, "all", lambda row: row.get("reward_mean"), 1)]
    names = list(dict.fromkeys(name for row in rows for name in _mapping(row.get("components"))))
    for colour, name in enumerate(names[:5], start=2):
        reward.append(_series(rows, name, lambda row, name=name: _mapping(_mapping(row.get("components")).get(name)).get("mean"), colour))  # type: ignore[misc]
    signal = _series(rows, "groups with signal", lambda row: _share(row.get("groups_with_signal"), row.get("groups")), 1)
    cut = _series(rows, "answers cut at the limit", lambda row: row.get("cut_share"), 2)
    flips = _series(rows, "expert choices that differ", lambda row: row.get("routing_flip_rate"), 3)
    gaps = [
        _series(rows, "mean", lambda row: row.get("logprob_gap_mean"), 1),
        _series(rows, "largest", lambda row: row.get("logprob_gap_max"), 2),
    ]
    seconds = [
        _series(rows, name, lambda row, key=key: row.get(key), colour)  # type: ignore[misc]
        for colour, (name, key) in enumerate((("generation", "generation_seconds"), ("training", "training_seconds"), ("rewards", "reward_seconds")), start=1)
    ]  # fmt: skip
    plots: list[Html] = [
        _plot("Mean reward", reward, "Of a rollout's answers: the weighted sum, and each component by itself."),
        _plot("Shares", [signal, cut, flips], "A group whose rewards are all equal teaches nothing.", percent_=True),
        _plot("Length of answers", [_series(rows, "tokens", lambda row: row.get("length_mean"), 1)], "Mean over a rollout."),
        _plot("Entropy", [_series(rows, "nats per token", lambda row: row.get("entropy"), 3)], "Of the policy at the answers' tokens."),
        _plot("KL to the reference", [_series(rows, "k3 per token", lambda row: row.get("kl"), 2)], "Mean over tokens."),
        _plot("Log-probability gap", gaps, "Between the engine that samples and the trainer, at unchanged weights."),
        _plot("Gradient norm", [_series(rows, "before clipping", lambda row: row.get("grad_norm"), 5)], "Global norm."),
        _plot("Seconds of a step", seconds, "Where they go."),
    ]
    return grid(*plots)


def _series(rows: Sequence[Row], name: str, value: Any, colour: int) -> Series:
    points = [(step, y) for row in rows if (step := finite(row.get("step"))) is not None and (y := finite(value(row))) is not None]
    return Series(name, [x for x, _ in points], [y for _, y in points], colour)


def _plot(title: str, series: Sequence[Series], note: str, percent_: bool = False) -> Html:
    there = [one for one in series if one.x]
    if not there:
        return gap(title, "metrics.jsonl has no values of it.")
    return figure(Lines(title, there, note=note, zero=True, percent=percent_))


# ---------------------------------------------------------------------- answers


def _answers(folder: Path) -> Html:
    rollouts = read_answers(folder / "answers.jsonl", ROLLOUTS)
    if not rollouts:
        return gap("Answers", "answers.jsonl is not in the run folder, or is empty.")
    parts: list[Html] = []
    for questions in rollouts:
        means = [value for one in questions if (value := finite(one.get("mean"))) is not None]
        signal = sum(bool(one.get("signal")) for one in questions)
        words = f"step {questions[0].get('step')}: mean reward {sum(means) / max(1, len(means)):.3f}, {signal} of {len(questions)} groups with signal"
        parts.append(packed(words, *[_question(one) for one in questions]))
    last, taken = rollouts[-1][0].get("rollout", len(rollouts)), sum(map(len, parts))
    if taken > ROOM and len(parts) > 2:
        most = max(2, len(parts) * ROOM // taken)
        parts = [parts[round(at * (len(parts) - 1) / (most - 1))] for at in range(most)]
    if last > len(parts):
        words = f"{len(parts)} of {last} rollouts, evenly chosen; answers.jsonl in the run folder has them all."
        parts.insert(0, tag("p", words, class_="lead"))
    return tag("div", *parts, class_="card wide")


def _question(record: Mapping[str, Any]) -> Html:
    answers = [one for one in record.get("answers", ()) if isinstance(one, Mapping)]
    names = list(dict.fromkeys(name for one in answers for name in _mapping(one.get("components"))))
    rows: list[Sequence[object]] = []
    for one in sorted(answers, key=lambda one: -(finite(one.get("reward")) or 0.0)):
        said = [_said(_mapping(_mapping(one.get("components")).get(name))) for name in names]
        text = _cut(str(one.get("text", "")))
        rows.append((_number(one.get("reward")), *said, _number(one.get("advantage")), one.get("tokens"), tag("pre", text, dir="ltr")))
    gold = f" · answer: {_cut(str(record.get('gold')))}" if record.get("gold") is not None else ""
    head = ("reward", *names, "advantage", "tokens", "text")
    summary = f"{_cut(str(record.get('question') or record.get('problem')), 160)}{gold}"
    return folded(summary, table(head, rows, numeric=tuple(range(len(head) - 1))))


def _said(outcome: Mapping[str, Any]) -> object:
    if not outcome:
        return "–"
    if outcome.get("verdict") == "unknown":
        return tag("span", "not judged", title=str(outcome.get("note", "")))
    value = _number(outcome.get("value"))
    return tag("span", value, title=str(outcome["note"])) if outcome.get("note") else value


def _settings(folder: Path) -> Html:
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = from_plain(GRPOConfig, raw["grpo"])
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        return gap("Objective", f"config.json cannot be read: {error}")
    ours: tuple[str, ...] = ()
    if raw.get("preset"):
        named = preset(raw["preset"])
        ours = (*named.ours, *changes(named.config, config))
    facts = [(name, str(raw.get(name))) for name in ("model", "data", "tasks", "preset", "reward_model", "device") if raw.get(name)]
    return grid(card("Formula", tag("pre", formula(config, ours), dir="ltr"), wide=True), card("Start", pairs(facts)))


# ---------------------------------------------------------------------- small pieces


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _share(part: Any, whole: Any) -> float | None:
    above, below = finite(part), finite(whole)
    return above / below if above is not None and below else None


def _number(value: Any) -> str:
    number = finite(value)
    return "–" if number is None else f"{number:.3g}"


def _cut(text: str, most: int = _TEXT) -> str:
    return text if len(text) <= most else f"{text[:most]} … {grouped(len(text) - most)} more characters"
