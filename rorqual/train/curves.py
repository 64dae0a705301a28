"""The curves of a run as plots: learning, expert balance, schedules, speed. What was not recorded becomes a named gap. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rorqual.html.numbers import finite
from rorqual.html.page import Html, gap, grid, join, tag
from rorqual.html.plots import HeatMap, Lines, Series, figure
from rorqual.train.history import History, Row

_MAX_HEAT_MAPS = 12
_LAYER_POINTS = 150
_SMOOTHING = 0.03  # width of the bold loss curve's window, as a share of the run


class Curves:
    """Plots of one history; `layers` are the names of its MoE blocks, in the order of the lists in the metrics.

    `main_source` is the validation source that stands first and beside the training loss.
    """

    def __init__(self, history: History, layers: Sequence[str], main_source: str | None = None) -> None:
        self.history = history
        self.key = history.x_key
        self.x_label = "tokens" if self.key == "tokens" else "step"
        self._layers, self._main_source = layers, main_source
        rows = history.train
        self.steps = [(row["tokens"], row["step"]) for row in rows if finite(row.get("step")) is not None] if self.key == "tokens" else []

    # ------------------------------------------------------------------ sections

    def learning(self, gzip_bpb: float | None, xz_bpb: float | None) -> Html:
        """Loss, bits per byte, MTP acceptance."""
        return grid(self._loss(), self._bpb(gzip_bpb, xz_bpb), self._acceptance(), self._grad_norm())

    def experts(self) -> Html:
        """MaxVio and bias range over time, one load heat map per MoE layer."""
        vio = self._per_layer("max_vio")
        parts: list[object] = []
        if vio:
            note = "Load of the busiest expert over the mean, minus 1; averaged over short stretches. 0 is perfect balance."
            parts.append(self._figure("MaxVio per layer", vio, note=note, zero=True))
        else:
            parts.append(gap("MaxVio per layer", "max_vio has no values in the train lines of metrics.jsonl."))
        low, high = self._per_layer("bias_min"), self._per_layer("bias_max")
        if low and high:
            note = "Smallest to largest selection bias. It moves by the update speed once per step and never scales an output."
            bands = [Series(h.name, h.x, h.y, h.color, low=lo.y) for lo, h in zip(low, high, strict=False)]
            parts.append(self._figure("Router bias range", bands, note=note))
        else:
            parts.append(
                gap(
                    "Router bias range",
                    "bias_min and bias_max have no values in the train lines of metrics.jsonl; a router without selection bias has none.",
                )
            )
        return join([grid(*parts), self._heat_maps()])

    def schedules(self) -> Html:
        """The four schedules of report section 4.2, as they were applied."""
        wanted = (
            ("Learning rate", "lr", 1), ("Batch size, sequences", "batch_size", 4),
            ("Bias update speed γ", "bias_update_speed", 3), ("MTP loss weight λ", "mtp_loss_weight", 2),
        )  # fmt: skip
        return grid(
            *(
                self._scalar(title, key, colour, kind="line" if key == "lr" else "step", zero=True, height=170)
                for title, key, colour in wanted
            )
        )

    def speed(self) -> Html:
        """Tokens per second, share of the measured ceiling, memory, balance loss."""
        return grid(
            self._scalar("Tokens per second", "tokens_per_second", 1, zero=True, height=190),
            self._scalar("Share of the measured GEMM ceiling", "share_of_ceiling", 4, zero=True, height=190, as_percent=True),
            self._scalar("Memory in use, bytes", "memory_bytes", 5, zero=True, height=190),
            self._scalar("Balance loss", "balance_loss", 6, height=190),
        )

    # ------------------------------------------------------------------ learning

    def _loss(self) -> Html:
        series: list[Series] = []
        for name, key, colour in (("main", "main_loss", 1), ("MTP", "mtp_loss", 2)):
            x, y = self._points(self.history.train, key)
            if key == "main_loss" and not x:
                x, y = self._points(self.history.train, "loss")
            if len(x) > 40:
                series += [Series(f"{name}, each step", x, y, colour, "faint"), Series(f"{name} (train, smoothed)", x, _smooth(y), colour)]
            elif x:
                series.append(Series(f"{name} (train)", x, y, colour))
        for source, rows, _ in self._sources()[:1]:
            x, y = self._points(rows, "loss")
            if x:
                series.append(Series(f"main, validation on {source}", x, y, 3, "points"))
        if not series:
            return gap("Loss", "main_loss, mtp_loss and validation loss are in no line of metrics.jsonl.")
        return self._figure("Loss", series, note="Nats per token, logarithmic axis.", log_y=True, height=300)

    def _bpb(self, gzip_bpb: float | None, xz_bpb: float | None) -> Html:
        series = []
        for source, rows, colour in self._sources():
            x, y = self._points(rows, "bpb")
            if x:
                series.append(Series(source, x, y, colour, "points"))
        if not series:
            return gap("Bits per byte", "bpb is in no validation line of metrics.jsonl.")
        rules = [(value, name) for value, name in ((gzip_bpb, "gzip −9"), (xz_bpb, "xz")) if value is not None]
        note = (
            "Validation text, logarithmic axis; dashed: what the compressor needs for the same stream."
            if rules
            else "Validation text, logarithmic axis."
        )
        return self._figure("Bits per byte", series, note=note, rules=rules, log_y=True, height=300)

    def _acceptance(self) -> Html:
        series = []
        for source, rows, colour in self._sources():
            x, y = self._points(rows, "mtp_acceptance")
            if x:
                series.append(Series(source, x, y, colour, "points"))
        if not series:
            return gap("MTP acceptance", "mtp_acceptance is in no validation line of metrics.jsonl; a model without MTP modules has none.")
        return self._figure("MTP acceptance", series, note="Share of MTP's guesses that the main model makes too.", zero=True, percent=True)

    def _grad_norm(self) -> Html:
        return self._scalar("Gradient norm", "grad_norm", 5, log_y=True, note="Global norm before clipping, logarithmic axis.")

    def _sources(self) -> list[tuple[str, list[Row], int]]:
        """(name, validation rows, colour): the run's own validation source first, then those with most rows.

        What is measured in another way at the end, by other weights or over more text, is a series of its own and never the end of a curve.
        """
        table: dict[tuple[bool, str], list[Row]] = {}
        for row in self.history.validation:
            ways = [
                words
                for words, there in (
                    ("moving average", row.get("weights") == "ema"),
                    ("whole set, overlapping windows", row.get("sliding")),
                )
                if there
            ]
            table.setdefault((bool(ways), ", ".join([str(row.get("source", "validation")), *ways])), []).append(row)
        found = sorted(table.items(), key=lambda item: (item[0][0], item[0][1] != self._main_source, -len(item[1])))
        return [(name, rows, colour) for ((_, name), rows), colour in zip(found, (1, 4, 5, 2, 3, 6), strict=False)]

    # ------------------------------------------------------------------ experts

    def layer_name(self, index: int) -> str:
        """Name of the MoE block at this place of the metric lists."""
        return self._layers[index] if index < len(self._layers) else f"MoE block {index}"

    def _per_layer(self, key: str) -> list[Series]:
        """One curve per MoE block, each point the mean of a stretch of the run, so that many layers stay readable together."""
        rows = [row for row in self.history.train if isinstance(row.get(key), list) and finite(row.get(self.key)) is not None]
        depth = max((len(row[key]) for row in rows), default=0)
        stretch = -(-len(rows) // _LAYER_POINTS) or 1
        groups = [rows[at : at + stretch] for at in range(0, len(rows), stretch)]
        x = [group[len(group) // 2][self.key] for group in groups]
        out = []
        for i in range(depth):
            found = [[v for row in group if i < len(row[key]) and (v := finite(row[key][i])) is not None] for group in groups]
            y = [sum(values) / len(values) if values else None for values in found]
            out.append(Series(self.layer_name(i), x, y, i / max(1, depth - 1)))
        return out

    def _heat_maps(self) -> Html:
        rows = [row for row in self.history.loads if _is_load(row["load"]) and finite(row.get(self.key)) is not None]
        title = "Expert load over time"
        if not rows:
            return grid(gap(title, "load is in no train line of metrics.jsonl."))
        depth = min(len(row["load"]) for row in rows)
        chosen = (
            range(depth)
            if depth <= _MAX_HEAT_MAPS
            else sorted({round(i * (depth - 1) / (_MAX_HEAT_MAPS - 1)) for i in range(_MAX_HEAT_MAPS)})
        )
        x = [row[self.key] for row in rows]
        maps = []
        for layer in chosen:
            columns = [_relative(row["load"][layer]) for row in rows]
            experts = max(len(column) for column in columns)
            values = [[column[e] if e < len(column) else None for column in columns] for e in range(experts)]
            height = min(240, max(96, 9 * experts))
            heat = HeatMap(self.layer_name(layer), x, [str(e) for e in range(experts)], values, x_label=self.x_label, height=height)
            maps.append(figure(heat))
        left_out = "" if len(maps) == depth else f" {len(maps)} of {depth} layers, evenly chosen."
        lead = f"A row is an expert, a column a moment; colour is its load over the layer's mean.{left_out}"
        scale = tag("p", "none", tag("i"), "twice the mean or more", class_="scale")
        head = tag("div", tag("h3", title), tag("p", lead, class_="lead"), scale, class_="heading")
        return join([head, tag("div", *maps, class_="heats")])

    # ------------------------------------------------------------------ plain curves

    def _scalar(
        self, title: str, key: str, colour: int, kind: str = "line", note: str = "", zero: bool = False, log_y: bool = False, height: int = 250, as_percent: bool = False
    ) -> Html:  # fmt: skip
        x, y = self._points(self.history.train, key)
        if not x:
            return gap(title, f"{key} is in no train line of metrics.jsonl.")
        return self._figure(
            title, [Series(title, x, y, colour, kind)], note=note, zero=zero, log_y=log_y, height=height, percent=as_percent
        )

    def _figure(self, title: str, series: Sequence[Series], **options: Any) -> Html:
        return figure(Lines(title, series, x_label=self.x_label, steps=self.steps, x_min=0, **options))

    def _points(self, rows: Iterable[Row], key: str) -> tuple[list[float], list[float]]:
        points = [(x, y) for row in rows if (x := finite(row.get(self.key))) is not None and (y := finite(row.get(key))) is not None]
        return [x for x, _ in points], [y for _, y in points]


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean over a window centred on each point, narrower towards the ends, so that the curve does not lag behind a fast fall."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    reach = max(1, round(len(values) * _SMOOTHING / 2))
    out = []
    for i in range(len(values)):
        near = min(reach, i, len(values) - 1 - i)
        out.append((sums[i + near + 1] - sums[i - near]) / (2 * near + 1))
    return out


def _is_load(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(layer, list) and layer for layer in value)


def _relative(counts: Sequence[Any]) -> list[float | None]:
    """Counts over their mean; all None where no token was routed."""
    numbers = [finite(count) for count in counts]
    total = sum(number for number in numbers if number is not None)
    return [None if number is None or total <= 0 else number * len(numbers) / total for number in numbers]
