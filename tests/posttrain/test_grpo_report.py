"""The report of a run of GRPO: answers with rewards and advantages as text, gaps by name, rollouts evenly chosen when there are many."""

import base64
import json
import re
import zlib

import pytest

from rorqual.errors import RunError
from rorqual.posttrain import grpo_report
from rorqual.posttrain.grpo_config import GRPORun
from rorqual.posttrain.presets import presets
from rorqual.train.records import to_plain


def make_run(folder, rollouts=3, text="<script>alert({number})</script>"):
    folder.mkdir()
    run = GRPORun(model="m", data="q.jsonl", preset="dapo", grpo=presets()["dapo"].config)
    (folder / "config.json").write_text(json.dumps(to_plain(run)))
    rows, answers = [], []
    for number in range(1, rollouts + 1):
        said = {"accuracy": {"mean": 0.1 * number, "std": 0.5, "right": 1, "wrong": 1, "unknown": 0}}
        rows.append({"kind": "train", "step": number, "reward_mean": 0.1 * number, "components": said, "groups": 2, "groups_with_signal": 1, "answers": 8 * number})  # fmt: skip
        one = {"text": text.replace("{number}", str(number)), "tokens": 5, "cut": False, "reward": 1.0, "advantage": 1.5, "components": {"accuracy": {"value": 1.0, "verdict": "right"}}}  # fmt: skip
        other = {**one, "reward": None, "components": {"accuracy": {"value": None, "verdict": "unknown", "note": "timed out"}}}
        answers.append({"rollout": number, "step": number, "problem": "p", "question": f"question {number}", "gold": "42", "mean": 0.5, "std": 0.5, "signal": True, "answers": [one, other]})  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    return folder


def test_everything_said_can_be_read(tmp_path):
    page = grpo_report.write_report(make_run(tmp_path / "run")).read_text()
    assert page.count("question ") == 3 and "step 2: mean reward 0.500, 1 of 1 groups with signal" in page
    assert "&lt;script&gt;alert(2)&lt;/script&gt;" in page and "<script>alert" not in page
    assert "not judged" in page and "timed out" in page and "answer: 42" in page
    assert "0.300" in page and "clip(rho_t, 1 - 0.2, 1 + 0.28)" in page


def test_long_answers_are_kept_compressed(tmp_path):
    folder = make_run(tmp_path / "run", text="<b>one & two</b> " * 80)
    page = grpo_report.write_report(folder).read_text()
    kept = [zlib.decompress(base64.b64decode(data)).decode() for data in re.findall(r'data-packed="([^"]+)"', page)]
    assert len(kept) == 3 and "one &amp; two" not in page and len(page) < 80_000
    for number, text in enumerate(kept, start=1):
        assert f"question {number}" in text and text.count("&lt;b&gt;one &amp; two&lt;/b&gt; ") == 2 * 80 and "<b>" not in text


def test_many_rollouts_are_chosen_evenly_and_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(grpo_report, "ROLLOUTS", 3)
    page = grpo_report.write_report(make_run(tmp_path / "run", 9), tmp_path / "page.html").read_text()
    assert "3 of 9 rollouts, evenly chosen" in page and "question 5" in page and "question 4" not in page


def test_rollouts_that_take_too_much_room_are_chosen_too(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run", 9)
    whole = grpo_report.write_report(folder).read_text()
    assert "evenly chosen" not in whole and whole.count("question ") == 9
    monkeypatch.setattr(grpo_report, "ROOM", (whole.rindex("step 9") - whole.index("step 1")) // 2)
    page = grpo_report.write_report(folder).read_text()
    shown = [number for number in range(1, 10) if f"question {number}" in page]
    assert f"{len(shown)} of 9 rollouts, evenly chosen" in page and shown[0] == 1 and shown[-1] == 9 and 3 <= len(shown) <= 5


def test_what_is_missing_becomes_a_gap(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(RunError, match="no metrics.jsonl"):
        grpo_report.write_report(folder)
    (folder / "metrics.jsonl").write_text('{"kind": "event"}\n')
    page = grpo_report.write_report(folder).read_text()
    assert page.count("data-gap") >= 4
