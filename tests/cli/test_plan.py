"""`rorqual plan`: the report's run, other models, search, serving, comparison, experts; refusals in one message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rorqual.cli import plan
from rorqual.errors import ConfigError


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert plan.main(list(arguments)) == 0
    return capsys.readouterr().out


def test_the_reports_run(capsys: pytest.CaptureFixture[str]) -> None:
    out = json.loads(run(capsys, "v3_671b", "--json"))
    assert out["step_seconds"] == pytest.approx(19.926, rel=0.05) and out["arithmetic"]["cost_usd"] == 5_576_000
    text = run(capsys, "v3_671b", "--explain")
    for words in ("2,788,000", "arithmetic", "prediction", "leaves out", "fitted constants", "layers per stage 4, 4"):
        assert words in text, words


def test_another_model_finds_its_layout(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from rorqual.presets import preset

    (tmp_path / "config.json").write_text(json.dumps(preset("v2_lite_16b").to_hf()))
    out = json.loads(
        run(capsys, str(tmp_path / "config.json"), "--gpus", "8", "--gpu", "h100", "--tokens", "300e9", "--batch", "64", "--json")
    )
    assert out["gpus"] == 8 and out["memory"]["fits"] and "arithmetic" not in out
    given = json.loads(
        run(
            capsys,
            "v2_lite_16b",
            "--layout",
            "pp2,dp4,ep4",
            "--schedule",
            "1f1b",
            "--gpu",
            "h100",
            "--batch",
            "64",
            "--price",
            "1",
            "--json",
        )
    )
    assert given["layout"] == "pp2,dp4,ep4" and given["cost_usd"] == pytest.approx(given["gpu_hours_total"])


def test_search(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "v2_lite_16b", "--gpus", "8", "--gpu", "h100", "--batch", "64", "--search")
    assert "refused:" in text and "pp1,dp8" in text
    assert plan.main(["v3_671b", "--gpus", "8", "--gpu", "h100", "--batch", "64", "--search"]) == 1
    assert "needs" in capsys.readouterr().out


def test_serving_and_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    assert "cache 70,272 bytes a token" in run(capsys, "v3_671b", "--serve", "--gpus", "16", "--gpu", "h200")
    text = run(capsys, "v3_671b", "--compare", "llama3_405b")
    assert "10.2x" in text and "11.06x" in text


def test_experts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "load.json"
    file.write_text(
        json.dumps([[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]])
    )
    out = json.loads(run(capsys, "--experts", str(file), "--gpus", "8", "--replicas", "16", "--groups", "4", "--nodes", "2", "--json"))
    assert out["layers"][0]["physical_to_logical"] == [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1]
    file.write_text(json.dumps([5.0, 1.0, 1.0, 1.0]))
    text = run(capsys, "--experts", str(file), "--gpus", "4")
    assert "8 places on 4 GPUs" in text and "without copies 2.500" in text
    file.write_text('[["a"]]')
    with pytest.raises(ConfigError, match="list of numbers"):
        plan.main(["--experts", str(file)])


def test_the_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "written:" in run(capsys, "v3_671b", "--html", str(tmp_path / "plan.html"))
    assert (tmp_path / "plan.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "is no recipe"),
        (["v3_671b", "--gpu", "h900"], "is not known"),
        (["v3_671b", "--layout", "pp16,dp128,ep48"], "must divide dp"),
        (["v3_671b", "--layout", "pp16,dp128,ep64", "--gpus", "64"], "not 64"),
        (["v3_671b", "--gpus", "8", "--gpu", "h100", "--batch", "64"], "no layout of 8 x h100 fits"),
        (["v3_671b", "--serve", "--gpus", "1"], "use 10 GPUs or more"),
        (["v3_671b", "--search"], "needs --gpus"),
        (["v3_671b", "--seq", "-1"], "must be positive"),
        (["v3_671b", "--recompute", "all"], "not known"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan.main(arguments)


def test_no_torch_is_imported() -> None:
    code = "import sys; from rorqual.cli import plan; plan.main(['v3_671b', '--json']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
