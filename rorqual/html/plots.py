"""Plots as plain data: line plots and heat maps that `page.js` draws as SVG and canvas at the width of the window.

The data travels as JSON in the figure, never as script: `<` and `&` are written as \\u escapes, so that no text can end the element, and
values that are not finite become null, which is a break in a line. A curve of 1,000 points costs about 20 kB; plotly.js alone is 4.8 MB.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rorqual.html.page import Html, clean, tag


@dataclass(frozen=True)
class Series:
    """One curve. `color` is 1 to 6 of the page's palette, or a depth from 0.0 to 1.0 on the page's ramp (layers of a model)."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    color: int | float = 1
    kind: str = "line"
    """line | step | points (a thin line with a dot on each value) | faint (what another curve smooths)."""
    low: Sequence[float | None] | None = None
    """With `low`, the area between it and `y` is filled and no line drawn."""


@dataclass(frozen=True)
class Lines:
    """A line plot; `rules` are horizontal reference lines (value, name)."""

    title: str
    series: Sequence[Series]
    note: str = ""
    x_label: str = "step"
    log_y: bool = False
    zero: bool = False
    """Whether the y axis includes 0."""
    percent: bool = False
    rules: Sequence[tuple[float, str]] = ()
    height: int = 250
    x_min: float | None = None
    """Where the x axis begins at the latest; plots with equal ends share their read-out line."""
    steps: Sequence[tuple[float, float]] = field(default_factory=tuple)
    """(x, step) pairs when x is not the step: the read-out then names the nearest step too."""
    wide: bool = False


@dataclass(frozen=True)
class HeatMap:
    """Rows over time; `values[i][j]` belongs to row i and column j. Colours diverge around `centre`, or rise from it when `centre` is 0."""

    title: str
    x: Sequence[float]
    rows: Sequence[str]
    values: Sequence[Sequence[float | None]]
    centre: float = 1.0
    limit: float = 2.0
    """Value at which the colour is full."""
    row_name: str = "expert"
    x_label: str = "step"
    height: int = 150


def figure(plot: Lines | HeatMap) -> Html:
    """The figure element that the page's script fills."""
    payload = _heat(plot) if isinstance(plot, HeatMap) else _lines(plot)
    note = plot.note if isinstance(plot, Lines) else ""
    caption = tag("figcaption", tag("h3", plot.title), tag("p", note) if note else None)
    kind = "heat" if isinstance(plot, HeatMap) else "wide" if plot.wide else None
    classes = " ".join(filter(None, ("card", "plot", kind)))
    area = tag("div", class_="area", style=f"min-height:{plot.height}px", role="img", aria_label=describe(plot))
    return tag("figure", caption, area, Html(f'<script type="application/json">{embed(payload)}</script>'), class_=classes)


def describe(plot: Lines | HeatMap) -> str:
    """One sentence for readers who do not see the plot."""
    if isinstance(plot, HeatMap):
        return f"{plot.title}: heat map of {len(plot.rows)} rows over {len(plot.x)} points in time"
    ends = []
    for series in plot.series:
        values = [value for value in series.y if value is not None and math.isfinite(value)]
        if values and series.kind != "faint":
            ends.append(f"{series.name} from {values[0]:.4g} to {values[-1]:.4g}")
    return f"{plot.title}: {'; '.join(ends[:12]) or 'no values'}"


def embed(value: Any) -> str:
    """JSON that is safe inside a script element; numbers in five significant digits, non-finite ones as null."""
    text = json.dumps(_plain(value), separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        return _short(value)
    return value


def _short(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    short = float(f"{value:.5g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _lines(plot: Lines) -> dict[str, Any]:
    series = [
        {
            "name": s.name,
            "x": [int(x) if float(x).is_integer() else x for x in s.x],
            "y": list(s.y),
            "kind": s.kind,
            "low": None if s.low is None else list(s.low),
        }
        | ({"ramp": s.color} if isinstance(s.color, float) else {"color": s.color})
        for s in plot.series
    ]
    return {
        "type": "lines", "xLabel": plot.x_label, "logY": plot.log_y, "zero": plot.zero, "percent": plot.percent, "height": plot.height, "xMin": plot.x_min,
        "rules": [{"y": y, "name": name} for y, name in plot.rules], "steps": [[int(x), int(step)] for x, step in plot.steps], "series": series,
    }  # fmt: skip


def _heat(plot: HeatMap) -> dict[str, Any]:
    return {
        "type": "heat", "xLabel": plot.x_label, "x": [int(x) for x in plot.x], "rows": list(plot.rows), "centre": plot.centre, "limit": plot.limit,
        "rowName": plot.row_name, "height": plot.height, "values": [[None if v is None else round(v, 2) for v in row] for row in plot.values],
    }  # fmt: skip
