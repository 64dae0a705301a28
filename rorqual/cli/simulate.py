"""Simulate a pipeline schedule: bubble, memory, a picture, a Chrome trace.

rorqual simulate --schedule dualpipe --pp 8 --micro-batches 20
rorqual simulate --schedule 1f1b --pp 16 --micro-batches 60 --layers 61 --html out.html
rorqual simulate --schedule zb1p --pp 4 --micro-batches 12 --forward 1 --backward 2 --weight 0.9 --trace out.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rorqual.errors import ConfigError
from rorqual.planner.layout import deal
from rorqual.planner.schedule import SCHEDULES
from rorqual.planner.simulate import Costs, Simulation, simulate

WIDTH = 110
_LETTERS = {"F": "F", "B": "B", "I": "i", "W": "w"}


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code. Raises ConfigError for counts that the schedule cannot take."""
    parser = argparse.ArgumentParser(
        prog="rorqual simulate",
        description="Run a pipeline schedule with given costs and show where ranks wait. F forward, B backward, i input gradient, w weight gradient, X a forward and a backward overlapped.",
    )
    parser.add_argument("--schedule", choices=sorted(SCHEDULES), default="dualpipe", help="(default: dualpipe)")
    parser.add_argument("--pp", type=int, default=8, metavar="N", help="pipeline ranks (default: 8)")
    parser.add_argument(
        "--micro-batches", type=int, default=20, metavar="N", help="micro-batches a step, of both directions together (default: 20)"
    )
    parser.add_argument("--forward", type=float, default=1.0, metavar="T", help="time of a forward chunk (default: 1)")
    parser.add_argument("--backward", type=float, default=2.0, metavar="T", help="of a whole backward chunk (default: 2)")
    parser.add_argument("--weight", type=float, default=1.0, metavar="T", help="of the weight-gradient part of it (default: 1)")
    parser.add_argument("--pair", type=float, metavar="T", help="of an overlapped forward and backward (default: their sum)")
    parser.add_argument("--layers", type=int, metavar="N", help="deal N layers over the stages: costs are then of the stage with most layers, others take their share (default: even stages)")  # fmt: skip
    parser.add_argument("--send", type=float, default=0.0, metavar="T", help="of a message to another rank (default: 0)")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write a Chrome trace (chrome://tracing, Perfetto); one time unit is a second"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the picture as a self-contained page")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    args = parser.parse_args(argv)
    schedule = SCHEDULES[args.schedule](args.pp, args.micro_batches)
    sizes = [1] * schedule.num_stages if args.layers is None else layers_of(args.layers, schedule.num_stages)
    found = simulate(
        schedule, Costs(args.forward, args.backward, args.weight, args.pair, args.send, lambda stage: sizes[stage] / max(sizes))
    )
    if args.trace:
        _write(args.trace, json.dumps({"traceEvents": found.chrome_trace(), "displayTimeUnit": "ms"}))
    if args.html:
        from rorqual.planner.page import schedule_page

        _write(args.html, schedule_page(found, f"{args.schedule}, {args.pp} ranks, {args.micro_batches} micro-batches"))
    closed = closed_form(args.schedule, args.pp, args.forward, args.backward, args.weight, args.pair)
    if args.json:
        print(json.dumps(summary(found, closed)))
    else:
        print(text(found, closed))
        for path in filter(None, (args.trace, args.html)):
            print(f"written: {path}")
    return 0


def layers_of(layers: int, stages: int) -> list[int]:
    """Layers of each stage, as training deals them out; ConfigError for fewer layers than stages."""
    if layers < stages:
        raise ConfigError(f"--layers ({layers}) must be at least the number of stages ({stages})")
    return deal(layers, stages)


def closed_form(name: str, pp: int, forward: float, backward: float, weight: float, pair: float | None) -> float:
    """Bubble of the report's table 2, which holds for equal costs and free messages."""
    pair = forward + backward if pair is None else pair
    stages = 2 * pp if name == "dualpipev" else pp
    return {
        "1f1b": (pp - 1) * (forward + backward),
        "zb1p": (pp - 1) * (forward + backward - 2 * weight),
        "dualpipe": (stages / 2 - 1) * (pair + backward - 3 * weight),
        "dualpipev": (stages / 2 - 1) * (pair + backward - 3 * weight),
    }[name]


def summary(found: Simulation, closed: float) -> dict[str, object]:
    """The figures of a simulation as plain values."""
    return {
        "schedule": found.schedule.name, "ranks": found.schedule.num_ranks, "stages": found.schedule.num_stages,
        "micro_batches": found.schedule.num_micro_batches, "seconds": found.seconds, "bubble": list(found.bubble), "bubble_most": max(found.bubble),
        "bubble_share": max(found.bubble) / found.seconds if found.seconds else 0.0, "closed_form": closed, "peak_in_flight": list(found.peak_in_flight),
        "steps": sum(map(len, found.events)),
    }  # fmt: skip


def text(found: Simulation, closed: float) -> str:
    """Picture and figures for a terminal."""
    lines = [
        f"{found.schedule.name}: {found.schedule.num_ranks} ranks, {found.schedule.num_micro_batches} micro-batches, {found.seconds:g} in all",
        "",
    ]
    lines += [f"rank {rank:>3} {row}" for rank, row in enumerate(picture(found))]
    share = max(found.bubble) / found.seconds if found.seconds else 0.0
    lines += [
        "",
        f"bubble          {max(found.bubble):g} on the rank that waits most ({share:.1%} of the time); table 2 gives {closed:g} for equal costs and free messages",
        f"chunks in flight {', '.join(map(str, found.peak_in_flight))}",
    ]
    return "\n".join(lines)


def picture(found: Simulation, width: int = WIDTH) -> list[str]:
    """One line a rank: the letter of what runs in each slice of time, a dot where nothing does."""
    width = max(1, min(width, round(found.seconds) if found.seconds >= 20 else width))
    rows = []
    for events in found.events:
        row = ["."] * width
        for event in events:
            letter = "X" if len(event.step) == 2 else _LETTERS[event.step[0].kind]
            first = int(event.start / found.seconds * width) if found.seconds else 0
            last = int(event.end / found.seconds * width - 1e-9) if found.seconds else 0
            for column in range(first, min(last, width - 1) + 1):
                row[column] = letter
        rows.append("".join(row))
    return rows


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from None
