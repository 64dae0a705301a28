"""Sections of post-training: figures as they are in the files, named gaps for what is not there, text as text."""

from __future__ import annotations

import json
from pathlib import Path

from rorqual.html.page import document
from rorqual.posttrain.report import sections


def page(run: Path) -> str:
    return document("run", sections(run))


def test_a_run_without_post_training_has_no_sections(tmp_path: Path) -> None:
    assert sections(tmp_path) == []


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    text = page(tmp_path)
    assert "post_training is not in results.json" in text and "There is no line of kind train in sft/metrics.jsonl." in text


def test_figures_and_answers(tmp_path: Path) -> None:
    answers = [
        {"question": "What is 1 + 1?", "gold": "2", "text": "<b>2</b>", "right": True},
        {"question": "q", "gold": "3", "text": "4", "right": None},
    ]
    about = {"problems": 500, "kinds": ["addition"], "max_digits": 2, "short_percent": 35, "examples": {"sft": answers}}
    results = {
        "accuracy_pretrained": 0.0,
        "accuracy_pretrained_stderr": 0.0,
        "accuracy_sft": 0.388,
        "accuracy_sft_stderr": 0.0218,
        "post_training": about,
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "sft").mkdir()
    rows = [
        {"kind": "train", "step": step, "main_loss": 2.0 / step, "mtp_loss": 3.0 / step, "tokens": 100 * step, "seconds": step}
        for step in (1, 2)
    ]
    rows.insert(0, {"kind": "event", "event": "started", "step": 0, "packing_efficiency": 0.9727})
    (tmp_path / "sft" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = page(tmp_path)
    assert "38.8 % ± 2.2" in text and "0.0 % ± 0.0" in text and "after GRPO" not in text.partition("Accuracy")[2].partition("Answers")[0]
    assert "width:38.80%" in text  # bars end at all answers right
    assert "97.3 %" in text  # packed
    assert "35 % of the examples" in text and "&lt;b&gt;2&lt;/b&gt;" in text and "not judged" in text and "main from 2 to 1" in text
