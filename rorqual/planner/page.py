"""Plans and schedules as self-contained HTML pages: memory by part, time by phase, the schedule, sensitivity of the cost."""

from __future__ import annotations

from typing import Any

from rorqual.html.numbers import grouped, percent, short, size
from rorqual.html.page import Html, Section, bars, card, document, grid, hero, join, stack, table, tag, tile
from rorqual.planner.simulate import Simulation

_COLOURS = {"F": 1, "B": 2, "I": 3, "W": 4, "FB": 5}
_NAMES = {"F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient", "FB": "overlapped pair"}


def schedule_picture(found: Simulation, width: int = 1100, row: int = 22, most: int = 32) -> Html:
    """The ranks as rows of coloured boxes over time; pipelines of more than `most` ranks show every n-th."""
    step = -(-len(found.events) // most)
    shown = range(0, len(found.events), step)
    scale = (width - 60) / found.seconds if found.seconds else 0.0
    boxes = []
    for line, rank in enumerate(shown):
        y = line * row
        boxes.append(tag("text", f"rank {rank}", x=0, y=y + row * 0.65, style="font-size:11px;fill:currentColor"))
        for event in found.events[rank]:
            kind = "".join(op.kind for op in event.step)
            kind = "FB" if len(kind) == 2 else kind
            label = "+".join(f"{op.kind}{op.micro_batch}" for op in event.step)
            title = tag("title", f"{label}: {event.start:.4g} to {event.end:.4g}")
            boxes.append(tag("rect", title, x=f"{60 + event.start * scale:.2f}", y=y + 1, width=f"{max(0.5, (event.end - event.start) * scale - 0.4):.2f}",
                             height=row - 3, style=f"fill:var(--c{_COLOURS[kind]})"))  # fmt: skip
    height = len(shown) * row
    picture = tag(
        "svg",
        *boxes,
        viewBox=f"0 0 {width} {height}",
        width="100%",
        role="img",
        aria_label=f"{found.schedule.name} on {found.schedule.num_ranks} ranks",
    )
    legend = [tag("li", tag("i", style=f"--c:var(--c{colour})"), tag("span", _NAMES[kind])) for kind, colour in _COLOURS.items()]
    return tag("div", picture, tag("div", tag("ul", *legend), class_="stack"))


def schedule_page(found: Simulation, title: str) -> str:
    """A simulation as a page."""
    share = max(found.bubble) / found.seconds if found.seconds else 0.0
    rows = [
        (str(rank), f"{busy:.4g}", f"{bubble:.4g}", str(peak))
        for rank, (busy, bubble, peak) in enumerate(zip(found.busy, found.bubble, found.peak_in_flight, strict=True))
    ]
    body = join([schedule_picture(found), table(("rank", "busy", "bubble", "chunks in flight"), rows, numeric=(0, 1, 2, 3))])
    tiles = grid(tile("time", f"{found.seconds:.4g}"), tile("bubble", percent(share), "of the rank that waits most"),
                 tile("chunks in flight", str(max(found.peak_in_flight)), "most on any rank"))  # fmt: skip
    return document(title, [Section("schedule", "Schedule", join([tiles, body]))], kicker="pipeline simulation")


def plan_page(plan: dict[str, Any], found: Simulation) -> str:
    """A training plan as a page; `plan` is planner.report.training_plan's object, `found` the simulated step."""
    memory = plan["memory"]
    parts = [
        (name.replace("_", " "), value, size(value)) for name, value in sorted(memory["parts"].items(), key=lambda item: -item[1]) if value
    ]
    phases = [(name, seconds, f"{seconds:.2f} s") for name, seconds in plan["phases"].items()]
    cost = "no price given" if plan["cost_usd"] is None else f"${plan['cost_usd'] / 1e6:.3f}M"
    tiles = grid(
        hero("cost", cost, "", f"{grouped(plan['gpu_hours_total'])} GPU hours at ${plan['price']} an hour"),
        tile("step", f"{plan['step_seconds']:.2f}", unit="s"), tile("tokens a day", short(plan["tokens_per_day"])),
        tile("MFU", percent(plan["mfu_causal"]), "of the BF16 peak, causal attention"), tile("days", f"{plan['days']:.1f}", f"on {grouped(plan['gpus'])} {plan['gpu']}"),
    )  # fmt: skip
    fits = "fits" if memory["fits"] else "does not fit"
    sections = [
        Section("summary", "Summary", tiles),
        Section("memory", "Memory of the fullest GPU", join([stack(parts), tag("p", f"{size(memory['total'])} of {size(memory['available'])}: {fits}; {memory['chunks_in_flight']} chunks in flight")])),
        Section("time", "Time of a step", join([bars(phases), schedule_picture(found)]), "Phases of the rank that works longest, and the schedule of all."),
        Section("sensitivity", "What the cost depends on", _sensitivity(plan)),
    ]  # fmt: skip
    if "comparison" in plan:
        rows = [
            (row["what"], _figure(row["report"]), _figure(row["ours"]), f"{row['difference']:+.1%}", row["kind"])
            for row in plan["comparison"]
        ]
        sections.append(Section("report", "Beside the report", table(("figure", "report", "ours", "difference", "kind"), rows, numeric=(1, 2, 3)),
                                "Arithmetic follows from published inputs alone; a prediction comes from configuration, hardware and layout."))  # fmt: skip
    sections.append(Section("left-out", "What the published cost leaves out", tag("ul", *(tag("li", item) for item in plan["left_out"]))))
    return document(f"Plan: {plan['name']}", sections, kicker="what it would cost")


def _sensitivity(plan: dict[str, Any]) -> Html:
    def rows(table_: dict[str, float], unit: str) -> list[tuple[str, float, str]]:
        return [(unit.format(name), value, f"${value / 1e6:.3g}M") for name, value in table_.items()]

    by = plan["sensitivity"]
    cards = [card("by price of a GPU hour", bars(rows(by["by_price"], "${}")))]
    if by["by_mfu"]:
        cards.append(card("by share of the BF16 peak", bars(rows({percent(float(k), 0): v for k, v in by["by_mfu"].items()}, "{}"))))
    return grid(*cards)


def _figure(value: float) -> str:
    return grouped(value) if abs(value) >= 1000 else f"{value:.4g}"
