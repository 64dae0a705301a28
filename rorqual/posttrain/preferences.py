"""Preference data with a judge's reasoning, from pairs of answers (report section 5.2.1; DeepSeek-R1 section 2.3.4).

    counts = annotate("pairs.jsonl", judge, "judged.jsonl")

A line with `chosen` and `rejected` keeps its order, and is left out where the judge's grades do not agree with it; one with `first` and
`second` is put in order by votes in both orders. The reasoning beside each answer is that of the vote nearest to its mean grade; it leads
to the score that the model is to learn. Grades are kept on the scale from 1 to 10. Every line is on disk when it is judged.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rorqual.errors import DataError, RorqualError
from rorqual.eval.results import Progress
from rorqual.posttrain.generate import TeacherGone
from rorqual.posttrain.judge import Grade, Judge
from rorqual.posttrain.reward_data import Case, Item, case_of
from rorqual.train.rundir import write_atomic

_WAVE = 8  # lines judged together, and lost together when the judge goes away
_STAGE = "judged"


def annotate(path: str | Path, judge: Judge, out: str | Path, show: Callable[[str, int, int], None] = lambda *_: None) -> dict[str, int]:
    """Judges every line of `path` into `out`; how many were kept, and left out by reason. A call that was stopped goes on where it was.

    TeacherGone where the judge goes away: what was judged is kept.
    """
    file, out = Path(path), Path(out)
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}; give a file of JSON lines") from error
    lines = [(str(number), line) for number, line in enumerate(raw.split(b"\n"), start=1) if line.strip()]
    facts = {"judge": judge.teacher.describe(), "settings": asdict(judge.config), "data": hashlib.sha256(raw).hexdigest()}
    with Progress(out, facts) as progress:
        known = progress.records.get(_STAGE, {})
        todo = [one for one in lines if one[0] not in known]
        done = len(lines) - len(todo)
        show(_STAGE, done, len(lines))
        for start in range(0, len(todo), _WAVE):
            try:
                progress.put(_STAGE, _judged(todo[start : start + _WAVE], judge))
            except TeacherGone as error:
                raise TeacherGone(
                    f"{error}. {done} of {len(lines)} lines are judged in {progress.path}; the same command goes on from there"
                ) from None
            done = min(len(lines), done + _WAVE)
            show(_STAGE, done, len(lines))
        records = [progress.records[_STAGE][number] for number, _ in lines]
        kept = [record["row"] for record in records if "row" in record]
        write_atomic(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
        progress.finish()
    return {"kept": len(kept), **Counter(record["left"] for record in records if "left" in record)}


def _judged(lines: list[tuple[str, bytes]], judge: Judge) -> list[dict[str, Any]]:
    records: dict[str, dict[str, Any]] = {}
    cases: dict[str, tuple[Mapping[str, Any], Case]] = {}
    open_ones: dict[str, tuple[dict[str, Any], Case]] = {}
    for number, line in lines:
        try:
            row = json.loads(line.decode("utf-8-sig" if number == "1" else "utf-8"))
            undecided = isinstance(row, Mapping) and "first" in row and "second" in row
            if undecided:
                row = {**row, "chosen": row["first"], "rejected": row["second"]}
            case = case_of(row, -math.inf)
            if len(case.items) != 2:
                raise DataError("a single answer, where a pair is needed")
            (open_ones if undecided else cases)[number] = row, case
        except (ValueError, RecursionError, RorqualError) as error:
            records[number] = {"left": str(error)[:120] if isinstance(error, RorqualError) else "not JSON in UTF-8"}
    pairs = [
        (number, case.items[0].question, case.items[0].answer, case.items[1].answer, case.items[0].reference)
        for number, (_, case) in open_ones.items()
    ]
    compared = judge.compare(pairs) if pairs else {}
    for number, (row, case) in open_ones.items():
        word = compared[number].word
        if word in ("tie", "unknown"):
            records[number] = {"left": "the votes came to no order" if word == "tie" else "too few votes could be read"}
            continue
        items = case.items if word == "first" else (case.items[1], case.items[0])
        cases[number] = {name: value for name, value in row.items() if name not in ("first", "second")}, Case(items)
    grades = (
        judge.grade([(f"{number}/{side}", item) for number, (_, case) in cases.items() for side, item in enumerate(case.items)])
        if cases
        else {}
    )
    for number, (row, case) in cases.items():
        records[number] = _record(row, case.items, grades[f"{number}/0"], grades[f"{number}/1"])
    return [{"id": number, **records[number]} for number, _ in lines]


def _record(row: Mapping[str, Any], items: tuple[Item, ...], better: Grade, worse: Grade) -> dict[str, Any]:
    if not (math.isfinite(better.value) and math.isfinite(worse.value)):
        return {"left": "too few votes could be read"}
    sure = items[0].reference is None or better.value > 0.5 > worse.value  # most votes say right, most say wrong
    if better.value <= worse.value or not sure:
        return {"left": "the grades do not agree with the order"}
    if not (better.reasoning and worse.reasoning):
        return {"left": "a grade without reasoning"}
    kept = {name: value for name, value in row.items() if name not in ("chosen", "rejected")}
    return {"row": {
        **kept, "chosen": items[0].answer, "rejected": items[1].answer, "chosen_reasoning": better.reasoning, "rejected_reasoning": worse.reasoning,
        "chosen_score": 1 + 9 * better.value, "rejected_score": 1 + 9 * worse.value,
    }}  # fmt: skip
