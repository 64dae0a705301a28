"""The report of a run: config.json, metrics.jsonl, results.json and lineage.json of its folder as one self-contained HTML page.

Reads whatever is there: an unfinished run has no results.json, an old one lacks keys; each missing key becomes a gap with its name,
never an error. Sampled text comes from a model and is shown as text only (html/page.py). No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rorqual.config import ModelConfig
from rorqual.errors import RorqualError, RunError
from rorqual.html.numbers import duration, finite, flops, grouped, percent, short, size
from rorqual.html.page import (
    Html,
    Section,
    bars,
    card,
    document,
    folded,
    gap,
    grid,
    hero,
    join,
    missing_tile,
    pairs,
    stack,
    table,
    tag,
    tile,
    write,
)
from rorqual.planner.flops import train_flops_per_token
from rorqual.planner.params import count
from rorqual.train.curves import Curves
from rorqual.train.history import History, Row, read_history

_MAX_JSON_BYTES = 64_000_000
_SAMPLES_PER_PROMPT = 4
_MAX_PROMPTS = 12
_MAX_TEXT = 4000


def write_report(run: str | Path, out: Path | None = None, extra: Sequence[Section] = ()) -> Path:
    """Writes the page (default: `report.html` in the run folder) and returns its path; RunError when the folder holds no run.

    `extra` sections, of what was done with the model afterwards, stand behind the samples.
    """
    target = Path(run) / "report.html" if out is None else out
    write(target, build_report(run, extra))
    return target


def build_report(run: str | Path, extra: Sequence[Section] = ()) -> str:
    """The page as text."""
    folder = Path(run)
    if not any((folder / name).is_file() for name in ("config.json", "metrics.jsonl", "results.json")):
        raise RunError(
            f"{folder} holds no run: none of config.json, metrics.jsonl, results.json is there; give the folder that pretrain wrote"
        )
    return _Report(folder).page(extra)


class _Report:
    """The parts read, and one method per section."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unreadable: list[str] = []
        self.config = self._object("config.json")
        self.results = self._object("results.json")
        self.lineage = self._object("lineage.json")
        self.history: History = read_history(folder / "metrics.jsonl")
        self.model = self._model()
        self.curves = Curves(self.history, self._layer_names(), _dig(self.config, "train", "validation_source"))

    def page(self, extra: Sequence[Section]) -> str:
        """All sections in order."""
        results = self.results
        sections = [
            Section("summary", "Summary", self._tiles()),
            Section("learning", "Learning", self.curves.learning(self._value("gzip_bpb"), self._value("xz_bpb")), "How the loss fell, and what it is worth in bits per byte of text it had never seen."),
            Section("experts", "Experts", self._experts(), "Auxiliary-loss-free balancing at work: the bias moves, the load evens out."),
            Section("schedules", "Schedules", self.curves.schedules(), "What the optimiser was told at each moment."),
            Section("speed", "Speed", join([self.curves.speed(), self._machine()]), "How fast it ran, on what, and where the time went."),
            Section("samples", "Samples", self._samples(), "What the model wrote at several points of its training. Each prompt, and how it was continued, from early to late."),
            *extra,
            Section("data", "Data", self._data(), "What it was trained on, and what was left out."),
            Section("configuration", "Configuration", self._configuration(), "Everything that decides the run, as it was resolved."),
        ]  # fmt: skip
        finished = bool(results)
        kicker = "Training report" if finished else "Training report of a run that is not finished"
        footer = (
            "Every figure on this page is read from config.json, metrics.jsonl, results.json and lineage.json in the folder of the run."
        )
        return document(str(self.config.get("name") or self.folder.resolve().name), sections, kicker, self._subtitle(), footer)

    # ------------------------------------------------------------------ reading

    def _object(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            if not path.exists():
                return {}
            if path.stat().st_size > _MAX_JSON_BYTES:
                self.unreadable.append(f"{name} is larger than {size(_MAX_JSON_BYTES)}")
                return {}
            value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        except (OSError, ValueError, RecursionError) as error:
            self.unreadable.append(f"{name} cannot be read: {error}")
            return {}
        if not isinstance(value, dict):
            self.unreadable.append(f"{name} is not an object")
            return {}
        return value

    def _model(self) -> ModelConfig | None:
        """The model's shape, for what results.json leaves open; None when config.json does not give one."""
        raw = self.config.get("model")
        if not isinstance(raw, dict):
            return None
        try:
            return ModelConfig.from_hf({key: value for key, value in raw.items() if key != "rope_scaling"}).settled()
        except (RorqualError, TypeError, ValueError):
            return None

    def _layer_names(self) -> list[str]:
        if self.model is None:
            return []
        return [f"layer {layer}{' (MTP)' if self.model.is_mtp(layer) else ''}" for layer in self.model.moe_layers]

    def _value(self, key: str) -> float | None:
        value = finite(self.results.get(key))
        return value if value is not None else self._derived(key)

    def _derived(self, key: str) -> float | None:
        """Figures that follow from the configuration and the metrics when results.json does not have them."""
        if key in ("parameters_total", "parameters_active") and self.model is not None:
            parameters = count(self.model)
            return parameters.total if key == "parameters_total" else parameters.active
        if key == "train_flops":
            tokens, length = self._tokens(), finite(_dig(self.config, "train", "sequence_length"))
            if self.model is not None and tokens and length:
                return tokens * train_flops_per_token(self.model, int(length), mtp=self.model.num_nextn_predict_layers > 0)
        return None

    def _tokens(self) -> float | None:
        return max((tokens for row in self.history.train if (tokens := finite(row.get("tokens"))) is not None), default=None)

    # ------------------------------------------------------------------ summary

    def _subtitle(self) -> Html:
        total, active, seconds, tokens = (
            self._value("parameters_total"),
            self._value("parameters_active"),
            self._value("seconds"),
            self._tokens(),
        )
        parts = []
        if total is not None and active is not None:
            parts.append(f"A model of DeepSeek-V3's shape: {short(total)} parameters, {short(active)} of them active per token.")
        if tokens is not None:
            parts.append(f"Trained on {short(tokens)} tokens{f' in {duration(seconds)}' if seconds is not None else ''}.")
        parts += [f"{text[0].upper()}{text[1:]}." for text in self.unreadable]
        if self.history.broken:
            parts.append(f"{grouped(self.history.broken)} lines of metrics.jsonl could not be read and were left out.")
        return tag("span", " ".join(parts))

    def _tiles(self) -> Html:
        def show(label: str, key: str, form: Any, note: str = "", unit: str = "") -> Html:
            value = self._value(key)
            return missing_tile(label, key, "results.json") if value is None else tile(label, form(value), note, unit)

        return tag(
            "div",
            self._compression(),
            show("MTP acceptance", "mtp_acceptance", percent, "guesses for token i+2 that the main model makes too"),
            show("Speed", "tokens_per_second", lambda v: grouped(v) if v >= 10 else f"{v:.3g}", unit="tokens/s"),
            show("Share of the GEMM ceiling", "share_of_ceiling", percent, "of the rate measured on this machine"),
            show("Time", "seconds", duration, "from start to the last result"),
            show("Parameters", "parameters_total", short, "in all, MTP modules not counted"),
            show("Active", "parameters_active", short, "per token, embedding and head included"),
            show("Training compute", "train_flops", flops, "forward and backward"),
            self._tokens_tile(),
            class_="tiles",
        )

    def _tokens_tile(self) -> Html:
        tokens = self._tokens()
        if tokens is None:
            return missing_tile("Tokens seen", "tokens", "metrics.jsonl")
        return tile("Tokens seen", short(tokens), f"{grouped(self.history.train[-1].get('step') or self.history.steps)} steps")

    def _compression(self) -> Html:
        bpb = self._value("validation_bpb")
        if bpb is None:
            seen = [row for row in self.history.validation if finite(row.get("bpb")) is not None]
            if not seen:
                return missing_tile("Validation, bits per byte", "validation_bpb", "results.json", large=True)
            note = f"validation_bpb is not in results.json; this is the last validation in metrics.jsonl, of {_when(seen[-1])}"
            return hero("Validation so far", f"{seen[-1]['bpb']:.3f}", "bits per byte", note)
        rows, notes = [("this model", bpb, f"{bpb:.3f}")], []
        for key, name in (("gzip_bpb", "gzip −9"), ("xz_bpb", "xz")):
            value = self._value(key)
            if value is None:
                notes.append(f"{key} is not in results.json")
            else:
                rows.append((name, value, f"{value:.3f}"))
        note = "; ".join(notes) or "on the concatenated validation documents, beside two compressors of the same stream; lower is better"
        return hero("Validation", f"{bpb:.3f}", "bits per byte", note, bars(rows, accent=0))

    # ------------------------------------------------------------------ experts, machine

    def _experts(self) -> Html:
        if self.model is not None and not self.model.moe_layers:
            return gap("No routed experts", "This model has none, so there is no balance to report.")
        return self.curves.experts()

    def _machine(self) -> Html:
        cards = []
        rows = []
        for stage in _list(self.results.get("stages")):
            seconds = finite(stage.get("seconds")) if isinstance(stage, Mapping) else None
            if seconds is not None:
                rows.append((str(stage.get("name", "unnamed")), seconds, duration(seconds)))
        if rows:
            total = sum(seconds for _, seconds, _ in rows)
            cards.append(card(f"Where {duration(total)} went", stack(rows), wide=True))
        else:
            cards.append(gap("Stages", "stages is not in results.json."))
        facts = _flat(self.results.get("machine"))
        cards.append(card("Machine", pairs(facts)) if facts else gap("Machine", "machine is not in results.json."))
        events = [(_when(row), _event(row)) for row in self.history.events]
        if events:
            cards.append(card("Events", pairs(events[-40:])))
        return grid(*cards)

    # ------------------------------------------------------------------ samples

    def _samples(self) -> Html:
        groups: dict[str, list[Row]] = {}
        for row in self.history.samples:
            if isinstance(row.get("text"), str):
                groups.setdefault(str(row.get("prompt", "")), []).append(row)
        if not groups:
            return gap("Text samples", "There is no line of kind sample in metrics.jsonl.")
        cards = []
        for prompt, rows in list(groups.items())[:_MAX_PROMPTS]:
            last = len(rows) - 1
            chosen = sorted({round(i * last / max(1, _SAMPLES_PER_PROMPT - 1)) for i in range(_SAMPLES_PER_PROMPT)})
            texts = [_sample(rows[i], prompt) for i in chosen]
            head = tag("pre", prompt if len(prompt) <= _MAX_TEXT else f"{prompt[:_MAX_TEXT]} …", class_="prompt", dir="ltr")
            cards.append(tag("div", head, tag("div", *texts, class_="samples"), class_="card wide"))
        return grid(*cards)

    # ------------------------------------------------------------------ data

    def _data(self) -> Html:
        data = self.results.get("data")
        if not isinstance(data, Mapping) or not data:
            return gap("Data", "data is not in results.json.")
        cards = [self._sources(data)]
        rejected = data.get("rejected")
        if isinstance(rejected, Mapping):
            rows = [(reason, grouped(number)) for reason, value in rejected.items() if (number := finite(value)) is not None]
            cards.append(card("Rejected records", table(("reason", "records"), rows, numeric=(1,)) if rows else tag("p", "None.")))
        else:
            cards.append(gap("Rejected records", "data.rejected is not in results.json."))
        rest = _flat({key: value for key, value in data.items() if key not in ("sources", "rejected", "epochs")})
        if rest:
            cards.append(card("Folder", pairs(rest)))
        return grid(*cards)

    def _sources(self, data: Mapping[str, Any]) -> Html:
        sources = data.get("sources")
        if not isinstance(sources, Mapping) or not sources:
            return gap("Sources", "data.sources is not in results.json.")
        rows = []
        for name, entry in sources.items():
            entry = entry if isinstance(entry, Mapping) else {}
            train = entry["train"] if isinstance(entry.get("train"), Mapping) else entry
            epochs = finite(entry.get("epochs"))
            epochs = finite(_dig(data, "epochs", name)) if epochs is None else epochs
            cells = [_cell(train.get("documents"), grouped), _cell(train.get("bytes"), size), _cell(train.get("tokens"), grouped)]
            held_out = _cell(_dig(entry, "validation", "documents"), grouped)
            rows.append((name, *cells, _cell(epochs, lambda value: f"{value:.2f}"), held_out))
        head = ("source", "documents", "bytes", "tokens", "epochs", "validation documents")
        return card("Sources", table(head, rows, numeric=(1, 2, 3, 4, 5)), wide=True)

    # ------------------------------------------------------------------ configuration

    def _configuration(self) -> Html:
        cards = []
        if self.config:
            scalars = [(key, value) for key, value in self.config.items() if not isinstance(value, Mapping)]
            groups = [(key, value) for key, value in self.config.items() if isinstance(value, Mapping)]
            parts = [pairs((key, _text(value)) for key, value in scalars)] if scalars else []
            parts += [folded(key, pairs(_flat(value))) for key, value in groups]
            cards.append(card("config.json", *parts, wide=True))
        else:
            cards.append(gap("config.json", "The run folder has none."))
        lineage = _flat(self.lineage)
        cards.append(
            card("Lineage", pairs(lineage), wide=True) if lineage else gap("Lineage", "lineage.json is not in the run folder, or is empty.")
        )
        return grid(*cards)


# ---------------------------------------------------------------------- small pieces


def _sample(row: Row, prompt: str) -> Html:
    text = row["text"]
    text = text[len(prompt) :] if prompt and text.startswith(prompt) else text
    shown = text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]} … {grouped(len(text) - _MAX_TEXT)} more characters"
    return tag("div", tag("p", tag("b", _when(row)), _tokens_seen(row)), tag("pre", shown, dir="ltr"), class_="sample")


def _when(row: Row) -> str:
    step = finite(row.get("step"))
    return "step –" if step is None else f"step {grouped(step)}"


def _tokens_seen(row: Row) -> str | None:
    tokens = finite(row.get("tokens"))
    return None if tokens is None else f"{short(tokens)} tokens"


def _event(row: Row) -> str:
    """What happened, then the rest of the record by name."""
    words = [_text(row[key]) for key in ("event", "name", "message") if key in row]
    words += [f"{key} {_text(value)}" for key, value in row.items() if key not in ("kind", "step", "event", "name", "message")]
    return ", ".join(words)[:_MAX_TEXT]


def _cell(value: Any, form: Any) -> str:
    number = finite(value)
    return "–" if number is None else form(number)


def _dig(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _flat(value: Any, where: str = "", depth: int = 0) -> list[tuple[str, str]]:
    """(dotted name, text) of every leaf of a nested object; deep or long parts stay JSON."""
    if not isinstance(value, Mapping) or depth > 6:
        return [(where, _text(value))] if where else []
    rows = []
    for key, item in value.items():
        rows += _flat(item, f"{where}.{key}" if where else str(key), depth + 1)
    return rows or ([(where, "empty")] if where else [])


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    number = finite(value)
    if isinstance(value, int) and number is not None:
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if number is not None:
        return f"{number:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]} …"
