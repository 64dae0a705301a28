"""Plans and schedules as self-contained HTML pages: memory by part and over time, time by phase, the schedule, sensitivity of the cost."""

from __future__ import annotations

from typing import Any

from rorqual.html.numbers import flops, grouped, percent, short, size
from rorqual.html.page import Html, Section, bars, card, document, folded, grid, hero, join, stack, table, tag, tile
from rorqual.planner.report import figure
from rorqual.planner.simulate import Simulation

_COLOURS = {"F": 1, "B": 2, "I": 3, "W": 4, "FB": 5}
_GAP = "margin-top:18px"
_MOST_COLOURS = 6
_LABEL = 96
_NAMES = {"F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient", "FB": "overlapped pair"}


def schedule_picture(found: Simulation, width: int = 1100, row: int = 22, most: int = 32) -> Html:
    """The ranks as rows of coloured boxes over time; pipelines of more than `most` ranks show every n-th."""
    step = -(-len(found.events) // most)
    shown = range(0, len(found.events), step)
    scale = (width - _LABEL) / found.seconds if found.seconds else 0.0
    boxes = []
    for line, rank in enumerate(shown):
        y = line * row
        boxes.append(tag("text", f"rank {rank}", x=0, y=y + row * 0.65, style="font-size:11px;fill:currentColor"))
        for event in found.events[rank]:
            kind = "".join(op.kind for op in event.step)
            kind = "FB" if len(kind) == 2 else kind
            label = "+".join(f"{op.kind}{op.micro_batch}" for op in event.step)
            title = tag("title", f"{label}: {event.start:.4g} to {event.end:.4g}")
            boxes.append(tag("rect", title, x=f"{_LABEL + event.start * scale:.2f}", y=y + 1, width=f"{max(0.5, (event.end - event.start) * scale - 0.4):.2f}",
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
    return tag("div", picture, tag("div", tag("ul", *legend), class_="stack"), style=_GAP)


def held_picture(found: Simulation, width: int = 1100, row: int = 26, most: int = 16) -> Html:
    """Activations that each rank holds over time, as chunks: one area a rank, all on one scale."""
    step = -(-len(found.events) // most)
    curves = found.in_flight()
    top = max(max(found.peak_in_flight), 1)
    scale = (width - _LABEL) / found.seconds if found.seconds else 0.0
    drawn = []
    for line, rank in enumerate(range(0, len(curves), step)):
        base, height = (line + 1) * row - 3, row - 6
        points, level = [(float(_LABEL), 0)], 0
        for when, count in curves[rank]:
            points += [(_LABEL + when * scale, level), (_LABEL + when * scale, count)]
            level = count
        path = " ".join(f"{x:.1f},{base - height * held / top:.1f}" for x, held in points)
        drawn.append(
            tag("text", f"rank {rank}: at most {found.peak_in_flight[rank]}", x=0, y=base - 5, style="font-size:11px;fill:currentColor")
        )
        drawn.append(tag("polygon", points=f"{path} {points[-1][0]:.1f},{base}", style="fill:var(--c1);opacity:.75"))
    height = len(range(0, len(curves), step)) * row
    return tag(
        "svg", *drawn, viewBox=f"0 0 {width} {height}", width="100%", role="img", aria_label="activations held over time", style=_GAP
    )


def schedule_page(found: Simulation, title: str) -> str:
    """A simulation as a page."""
    share = max(found.bubble) / found.seconds if found.seconds else 0.0
    rows = [
        (str(rank), f"{busy:.4g}", f"{bubble:.4g}", str(peak))
        for rank, (busy, bubble, peak) in enumerate(zip(found.busy, found.bubble, found.peak_in_flight, strict=True))
    ]
    body = join([schedule_picture(found), folded("Figures of every rank", table(("rank", "busy", "bubble", "chunks in flight"), rows, numeric=(0, 1, 2, 3)))])  # fmt: skip
    tiles = grid(tile("time", f"{found.seconds:.4g}"), tile("bubble", percent(share), "of the rank that waits most"),
                 tile("chunks in flight", str(max(found.peak_in_flight)), "most on any rank"))  # fmt: skip
    sections = [
        Section("schedule", "Schedule", join([tiles, body])),
        Section("memory", "Memory over time", held_picture(found), "Chunks whose activations a rank holds, from the start of a forward to the end of its last gradient."),
    ]  # fmt: skip
    return document(title, sections, kicker="pipeline simulation")


def plan_page(plan: dict[str, Any], found: Simulation) -> str:
    """A training plan as a page; `plan` is planner.report.training_plan's object, `found` the simulated step."""
    memory = plan["memory"]
    parts = [
        (name.replace("_", " "), value, size(value)) for name, value in sorted(memory["parts"].items(), key=lambda item: -item[1]) if value
    ]
    cut = parts if len(parts) <= _MOST_COLOURS else parts[: _MOST_COLOURS - 1]
    rest = sum(value for _, value, _ in parts[len(cut) :])
    shown = [*cut, ("all else", rest, size(rest))] if rest else cut
    every = table(
        ("part", "bytes", "share"), [(name, text, percent(value / memory["total"])) for name, value, text in parts], numeric=(1, 2)
    )
    phases = [(name, seconds, f"{seconds:.2f} s") for name, seconds in plan["phases"].items()]
    cost = "no price given" if plan["cost_usd"] is None else f"${plan['cost_usd'] / 1e6:.3f}M"
    tiles = grid(
        hero("cost", cost, "", f"{grouped(plan['gpu_hours_total'])} GPU hours at ${plan['price']:g} an hour"),
        tile("step", f"{plan['step_seconds']:.2f}", unit="s"), tile("tokens a day", short(plan["tokens_per_day"])),
        tile("MFU", percent(plan["mfu_causal"]), "of the BF16 peak, causal attention"), tile("days", f"{plan['days']:.1f}", f"on {grouped(plan['gpus'])} {plan['gpu']}"),
    )  # fmt: skip
    fits = "fits" if memory["fits"] else "does not fit"
    sections = [
        Section("summary", "Summary", tiles),
        Section("memory", "Memory", join([stack(shown), tag("p", f"{size(memory['total'])} of {size(memory['available'])}: {fits}; {memory['chunks_in_flight']} chunks in flight"), folded("All parts", every)]), "Of the fullest GPU."),
        Section("time", "Time of a step", join([bars(phases), schedule_picture(found), held_picture(found)]), _time_lead(plan, found)),
        Section("sensitivity", "Sensitivity", _sensitivity(plan), "What the cost depends on."),
    ]  # fmt: skip
    if "comparison" in plan:
        rows = [
            (row["what"], figure(row["report"]), figure(row["ours"]), f"{row['difference']:+.1%}", row["kind"])
            for row in plan["comparison"]
        ]
        sections.append(Section("report", "Beside the report", table(("figure", "published", "ours", "difference", "kind"), rows, numeric=(1, 2, 3)),
                                "Arithmetic follows from published inputs alone; a prediction comes from configuration, hardware and layout."))  # fmt: skip
    sections.append(Section("modules", "Modules", _explained(plan), "Where parameters and FLOP are, and how the figures come about."))
    sections.append(
        Section(
            "left-out", "Left out", tag("ul", *(tag("li", item) for item in plan["left_out"])), "What the published cost does not contain."
        )
    )
    return document(f"Plan: {plan['name']}", sections, kicker="what it would cost")


def _time_lead(plan: dict[str, Any], found: Simulation) -> str:
    drawn, all_of_them = found.schedule.num_micro_batches, plan["micro_batches"]
    which = "all" if drawn == all_of_them else f"the first {drawn} of {all_of_them}"
    return (
        f"Phases of the rank that works longest; the schedule of {which} micro-batches; and the chunks whose activations each rank holds."
    )


def _explained(plan: dict[str, Any]) -> Html:
    modules = [(one["name"], f"{one['parameters']:,}", f"{one['active']:,}", flops(one["train_flops"])) for one in plan["modules"]]
    parts: list[object] = [table(("module", "parameters", "used by a token", "FLOP a token, training"), modules, numeric=(1, 2, 3))]
    if "explanations" in plan:
        rows = [(one["figure"], one["formula"], one["inputs"]) for one in plan["explanations"]]
        parts.append(table(("figure", "formula", "inputs"), rows))
    return join(parts)


def _sensitivity(plan: dict[str, Any]) -> Html:
    def rows(table_: dict[str, float], unit: str) -> list[tuple[str, float, str]]:
        return [(unit.format(name), value, f"${value / 1e6:.3g}M") for name, value in table_.items()]

    by = plan["sensitivity"]
    cards = [card("by price of a GPU hour", bars(rows(by["by_price"], "${}")))]
    if by["by_mfu"]:
        cards.append(card("by share of the BF16 peak", bars(rows({percent(float(k), 0): v for k, v in by["by_mfu"].items()}, "{}"))))
    return grid(*cards)
