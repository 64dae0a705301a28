"""A task over a scripted model: records, sums, resumption at the next item, failures that are no zeros."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rorqual.eval.models import Asking, Failure
from rorqual.eval.results import Progress
from rorqual.eval.run import Options, evaluate
from rorqual.eval.task import Attempt, ChoiceTask, GenerationTask, Judgement, LastWordTask, Task, Tools
from rorqual.eval.tasks import catalog
from tests.eval.scripted import Scripted


def _run(task: Task, model: Any, folder: Path, options: Options = Options(), limit: int | None = None) -> dict[str, Any]:  # noqa: B008
    items = task.items(folder, limit=limit)
    with Progress(folder / "out.json", {"a": 1}) as progress:
        return evaluate(task, items, model, progress, options, Tools(), lambda done, total: None)


def _write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


COMMON: dict[str, Any] = {"name": "t", "version": 1, "files": ("t.jsonl",), "form": "rows", "fields": (), "shots": 0, "question": lambda row: row["q"]}  # fmt: skip


def _choices(**changes: Any) -> ChoiceTask:
    fields = {
        **COMMON,
        "answer": lambda row: "",
        "options": lambda row: row["o"],
        "gold": lambda row: row["g"],
        "group": lambda row: row["s"],
    }
    return ChoiceTask(**{**fields, **changes})


ROWS = [{"q": f"q{n}", "o": ["a", "bbbb"], "g": n % 2, "s": "xy"[n // 2]} for n in range(4)]


def test_choices_by_hand(tmp_path):
    """ "a" has -2 and "bbbb" -4: plain takes the first, per byte the second. Gold is 0, 1, 0, 1."""
    found = _run(_choices(), Scripted(score=lambda context, end: -2.0 if end == " a" else -4.0), _write(tmp_path, ROWS))
    assert found["metrics"]["acc"]["value"] == 0.5 and found["metrics"]["acc_norm"]["value"] == 0.5
    assert [item["picked"] for item in found["items"]] == [0, 0, 0, 0]
    assert [item["scores"]["acc_norm"] for item in found["items"]] == [0.0, 1.0, 0.0, 1.0]
    assert found["metrics"]["acc"]["stderr"] == pytest.approx(math.sqrt(1 / 3 / 4)) and found["n"] == 4
    assert found["groups"]["x"]["value"] == 0.5 and found["first_prompt"] == "q0"
    low, high = found["metrics"]["acc"]["interval"]
    assert low < 0.5 < high


def test_equal_choices_go_to_the_first(tmp_path):
    found = _run(_choices(options=lambda row: ["a", "b"]), Scripted(), _write(tmp_path, ROWS))
    assert [item["picked"] for item in found["items"]] == [0, 0, 0, 0]


def test_last_words(tmp_path):
    task = LastWordTask(**COMMON, answer=lambda row: row["o"][0])
    found = _run(task, Scripted(score=lambda context, end: -0.5 if context == "q0" else -1.5), _write(tmp_path, ROWS[:2]))
    assert found["metrics"]["acc"]["value"] == 0.5 and found["metrics"]["perplexity"]["value"] == pytest.approx(math.e)


def test_texts(tmp_path):
    """2 nats per byte are 2 / ln 2 bits."""
    (tmp_path / "a.txt").write_text("four")
    found = _run(catalog.task("bpb"), Scripted(), tmp_path)
    assert found["metrics"]["bits_per_byte"]["value"] == pytest.approx(2 / math.log(2)) and found["metrics"]["bits_per_byte"]["bytes"] == 4


def _judge(row: dict[str, Any], text: str, tools: Tools) -> Judgement:
    if text == "?":
        return Judgement(None, text, "out of time")
    return Judgement(float(text == row["q"]), text or None)


def _answers(**changes: Any) -> GenerationTask:
    return GenerationTask(**{**COMMON, "answer": lambda row: "", "judge": _judge, "metric": "em", **changes})


def test_what_could_not_be_judged_is_counted_and_no_zero(tmp_path):
    said = {"t/0": "q0", "t/1": "", "t/2": Failure("answered 500"), "t/3": "?"}
    found = _run(_answers(), Scripted(lambda name, prompt: said[name]), _write(tmp_path, ROWS))
    assert found["metrics"]["em"] == {**found["metrics"]["em"], "value": 0.5, "n": 2}
    assert (found["failed"], found["undecided"], found["unparseable_rate"], found["n"]) == (1, 1, pytest.approx(1 / 4), 4)
    assert found["items"][2] == {"id": "2", "failed": "answered 500"} and found["items"][3]["notes"] == ["out of time"]


def test_failures_of_likelihood_are_counted(tmp_path):
    model = Scripted(score=lambda context, end: Failure("no") if context == "q1" else -1.0)
    found = _run(_choices(), model, _write(tmp_path, ROWS))
    assert found["failed"] == 1 and found["metrics"]["acc"]["n"] == 3


def test_samples_of_one_item(tmp_path):
    """3 of 4 right: mean .75, pass@1 .75, pass@2 = 1 - C(1,2)/C(4,2) = 1, majority right."""
    said = ["q0", "other", "q0", "q0"]
    found = _run(_answers(), Scripted(lambda name, prompt: said), _write(tmp_path, ROWS[:1]), Options(asking=Asking(n=4, temperature=1.0), passes=(1, 2, 5)))  # fmt: skip
    values = {name: one["value"] for name, one in found["metrics"].items()}
    assert values == {"em": 0.75, "maj@4": 1.0, "pass@1": 0.75, "pass@2": 1.0}


def test_a_killed_run_goes_on_at_the_next_item(tmp_path):
    _write(tmp_path, ROWS)

    def dies(name: str, prompt: str) -> str:
        if name == "t/2":
            raise KeyboardInterrupt
        return prompt

    with pytest.raises(KeyboardInterrupt):
        _run(_answers(), Scripted(dies), tmp_path)
    whole = Scripted(lambda name, prompt: prompt)
    found = _run(_answers(), whole, tmp_path)
    assert "t/0" not in whole.asked and set(whole.asked) <= {"t/1", "t/2", "t/3"}
    assert found["metrics"]["em"]["value"] == 1.0 and [item["id"] for item in found["items"]] == ["0", "1", "2", "3"]


def test_a_second_attempt_sees_what_the_first_left(tmp_path):
    task = _answers(again=lambda row, prompt, text, verdict: Attempt(f"{prompt}|{text}|{verdict.note}") if row["g"] else None)
    model = Scripted(lambda name, prompt: "q1" if name.endswith("/2") and name != "t/2" else "wrong")
    found = _run(task, model, _write(tmp_path, ROWS[:2]))
    assert model.asked == ["t/0", "t/1", "t/1/2"] and model.prompts[-1] == "q1|wrong|"
    assert found["metrics"]["pass_rate_1"]["value"] == 0.0 and found["metrics"]["pass_rate_2"]["value"] == 0.5
    assert found["metrics"]["em"]["value"] == 0.5
    assert found["items"][1]["second"] == "q1"


def test_odd_answers_are_kept_as_they_are(tmp_path):
    said = {"t/0": "a" * 8192, "t/1": "\ufffd\x00\x1b[31m", "t/2": "q2", "t/3": " "}
    found = _run(_answers(), Scripted(lambda name, prompt: said[name]), _write(tmp_path, ROWS))
    assert [item["outputs"][0] for item in found["items"]] == list(said.values()) and found["metrics"]["em"]["value"] == 0.25


def test_items_that_failed_are_asked_again(tmp_path):
    _write(tmp_path, ROWS)
    first = _run(_choices(), Scripted(score=lambda context, end: Failure("no") if context == "q2" else -1.0), tmp_path)
    assert first["failed"] == 1
    again = Scripted()
    found = _run(_choices(), again, tmp_path, Options(batch=1))
    assert set(again.asked) == {"q2"} and found["failed"] == 0 and found["metrics"]["acc"]["n"] == 4


def test_a_resumed_run_cuts_the_same_batches(tmp_path):
    """Of three batches of two the second is half done: it is scored whole, the first not at all."""
    rows = [{**ROWS[0], "q": f"q{n}"} for n in range(6)]
    task, model = _choices(), Scripted()
    items = task.items(_write(tmp_path, rows))
    with Progress(tmp_path / "out.json", {}) as progress:
        progress.put("t", [{"id": str(n), "scores": {"acc": 1.0}} for n in range(3)])
        shown: list[tuple[int, int]] = []
        found = evaluate(task, items, model, progress, Options(batch=2), Tools(), lambda done, total: shown.append((done, total)))
    assert model.asked[::2] == ["q2", "q3", "q4", "q5"] and shown == [(3, 6), (4, 6), (6, 6)]
    assert found["items"][2] == {"id": "2", "scores": {"acc": 1.0}}


def test_texts_show_their_bytes(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("four")
    (texts / "b.txt").write_text("\u00e9")
    task, shown = catalog.task("bpb"), list[tuple[int, int]]()
    with Progress(tmp_path / "out.json", {}) as progress:
        evaluate(task, task.items(texts), Scripted(), progress, Options(batch=1), Tools(), lambda *pair: shown.append(pair))
    assert shown == [(0, 6), (4, 6), (6, 6)]


def test_further_scores_keep_their_order(tmp_path):
    task = _answers(judge=lambda row, text, tools: Judgement(1.0, text, parts={"z": 0.5, "a": 0.25, "m": 1.0}))
    found = _run(task, Scripted(lambda name, prompt: "x"), _write(tmp_path, ROWS))
    assert list(found["metrics"]) == ["em", "z", "a", "m"]


def test_a_long_text_goes_on_at_its_window(tmp_path, monkeypatch):
    """Killed after two of its slices of windows: the second run computes the others alone, and the sum is the same to the bit."""
    from rorqual.eval import models
    from tests.eval import small

    monkeypatch.setattr(models, "MOST_WINDOWS", 2)
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("the whale sings, the whale dives; " * 20)
    task = catalog.task("bpb")
    items, options = task.items(texts), Options(stride=16)

    def run(name: str, told: Any) -> tuple[dict[str, Any], int]:
        model = small.engine_model(window=32)
        with Progress(tmp_path / name, {}) as progress:
            found = evaluate(task, items, model, progress, options, Tools(), told)
        return found, model.computed()["tokens"]

    whole, tokens = run("whole.json", lambda done, total: None)

    def killed(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("killed.json", killed)
    found, rest = run("killed.json", lambda done, total: None)
    assert found["items"] == whole["items"] and 0 < rest < 0.6 * tokens
