"""The report of a run folder: figures, gaps, hostile text, broken files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rorqual.errors import RunError
from rorqual.planner.params import count
from rorqual.train.report import build_report, write_report
from tests.train.fake_run import MODEL, make


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("runs") / "laptop", steps=120)


def change(run: Path, tmp_path: Path, name: str, edit: Any) -> str:
    """The report of a copy whose JSON file `name` was edited."""
    for source in run.glob("*.json*"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    value = json.loads((tmp_path / name).read_text())
    edit(value)
    (tmp_path / name).write_text(json.dumps(value))
    return build_report(tmp_path)


def words(page: str) -> str:
    """The text that a reader sees, roughly."""
    body = re.sub(r"<script.*?</script>|<style.*?</style>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_headline_figures(run: Path) -> None:
    text = words(build_report(run))
    for figure in ("laptop", "2.094 bits per byte", "this model 2.094", "gzip −9 1.803", "xz 1.611", "MTP acceptance 48.3%", "1,981 tokens/s",
                   "61.2%", "14 min 28 s", "Parameters 5.76M", "Active 3.55M", "Tokens seen 492k 120 steps"):  # fmt: skip
        assert figure in text, figure


def test_sections_and_plots(run: Path) -> None:
    page = build_report(run)
    ids = re.findall(r'<section id="(\w+)"', page)
    assert ids == ["summary", "learning", "experts", "schedules", "speed", "samples", "data", "configuration"]
    titles = re.findall(r"<figcaption><h3>([^<]*)</h3>", page)
    assert titles == [
        "Loss", "Bits per byte", "MTP acceptance", "Gradient norm", "MaxVio per layer", "Router bias range", "layer 1", "layer 2", "layer 3", "layer 4",
        "layer 5", "layer 6 (MTP)", "Learning rate", "Batch size, sequences", "Bias update speed γ", "MTP loss weight λ", "Tokens per second",
        "Share of the measured GEMM ceiling", "Memory in use, bytes", "Balance loss",
    ]  # fmt: skip
    assert "data-gap" not in page


def test_tables(run: Path) -> None:
    text = words(build_report(run))
    assert "code 3,214 52.41 MB 13,102,805 0.11 66" in text
    assert "near-duplicate of a training document 5" in text
    assert "training 12 min 48 s 88%" in text
    assert "gemm_gflops 58.4" in text
    assert "optimizer.weight_decay 0.1" in text
    assert "q_lora_rank 96" in text
    assert "random initialisation" in text


def test_samples_of_several_steps_in_order(run: Path) -> None:
    page = build_report(run)
    assert re.findall(r"<b>step (\d+)</b>", page)[:4] == ["30", "60", "90", "120"]
    assert page.count("Answer: 17 + 25 = 42") == 1
    assert page.count("Question: What is 17 + 25?") == 1


def test_hostile_text_stays_text(run: Path) -> None:
    page = build_report(run)
    page.encode("utf-8")
    assert "<img" not in page
    assert page.count("<script>") == 1
    assert page.count("</script>") == page.count("<script")
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "\u202e" not in page
    assert "\x00" not in page


def test_each_missing_key_is_a_named_gap(run: Path, tmp_path: Path) -> None:
    keys = ["validation_bpb", "mtp_acceptance", "tokens_per_second", "share_of_ceiling", "seconds", "machine", "stages", "data"]
    for key in keys:
        text = words(change(run, tmp_path, "results.json", lambda value, key=key: value.pop(key)))
        assert f"{key} is not in results.json" in text
    assert "gzip_bpb is not in results.json" in words(change(run, tmp_path, "results.json", lambda value: value.pop("gzip_bpb")))
    assert "data.rejected is not in" in words(change(run, tmp_path, "results.json", lambda value: value["data"].pop("rejected")))


def test_figures_that_follow_from_the_configuration_are_derived(run: Path, tmp_path: Path) -> None:
    def strip(value: dict[str, Any]) -> None:
        for key in ("parameters_total", "parameters_active", "train_flops"):
            del value[key]

    assert count(MODEL).total == 5_757_392
    text = words(change(run, tmp_path, "results.json", strip))
    assert "Parameters 5.76M" in text
    assert "Active 3.55M" in text
    assert "Training compute 12.8 TFLOP" in text


def test_a_run_that_is_not_finished(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    (tmp_path / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text()[:30_000])
    text = words(build_report(tmp_path))
    assert "a run that is not finished" in text
    assert re.search(r"Validation so far \d\.\d{3} bits per byte validation_bpb is not in results.json; .* of step \d+ ", text)
    assert "1 lines of metrics.jsonl could not be read" in text
    assert "Loss" in text


@pytest.mark.parametrize(
    "junk",
    [
        "",
        "{",
        "[1]",
        "null",
        '{"validation_bpb": "high", "stages": 3, "machine": [1], "data": {"sources": {"a": 1}, "rejected": {"x": "y"}}}',
        "[" * 100_000,
    ],
)
@pytest.mark.parametrize("name", ["config.json", "results.json", "lineage.json"])
def test_broken_files_do_not_break_the_page(run: Path, tmp_path: Path, name: str, junk: str) -> None:
    for source in run.glob("*.json*"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    (tmp_path / name).write_text(junk)
    assert "</html>" in build_report(tmp_path)


def test_metrics_alone_and_odd_values(tmp_path: Path) -> None:
    rows = [{"kind": "train", "step": "x", "main_loss": None, "max_vio": [None], "load": [["a"]]}, {"kind": "validation"}, {"kind": "sample", "text": 3},
            {"kind": "train", "step": 1e308, "tokens": 10**400, "lr": True}]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "config.json" in words(build_report(tmp_path))


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        build_report(tmp_path)


def test_page_is_small_and_written_whole(run: Path, tmp_path: Path) -> None:
    path = write_report(run, tmp_path / "page.html")
    assert path.read_text(encoding="utf-8") == build_report(run)
    assert path.stat().st_size < 400_000
    assert write_report(run) == run / "report.html"


def test_needs_no_torch(run: Path) -> None:
    code = f"import sys; from rorqual.train.report import build_report; build_report({str(run)!r}); print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
