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
    for words in (
        "2,788,000",
        "arithmetic",
        "prediction",
        "leaves out",
        "fitted constants",
        "layers per stage 4, 4",
        "671B, 37.55B active",
        "routed experts",
    ):
        assert words in text, words
    table = run(capsys, "v3_671b", "--table")
    assert (
        table.startswith("| figure | published | ours | difference | kind |")
        and "| kv_bytes_per_token | 70,272 | 70,272 | +0.0% | arithmetic |" in table
    )


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
    assert "refused:" in text and "pp1,dp8" in text and "activations" in text and "zb1p" in text
    text = run(capsys, "v2_lite_16b", "--gpus", "8", "--gpu", "h100", "--batch", "64", "--search", "--schedule", "dualpipev")
    assert "dualpipev" in text and "zb1p" not in text
    assert plan.main(["v3_671b", "--gpus", "8", "--gpu", "h100", "--batch", "64", "--search"]) == 1
    assert "needs" in capsys.readouterr().out


def test_serving_and_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "v3_671b", "--serve", "--gpus", "16", "--gpu", "h200", "--explain")
    for words in (
        "70,272 bytes a token",
        "largest batch",
        "prefill",
        "tokens/s a user",
        "a million input tokens",
        "decode unit: 320 GPUs",
        "ceil(experts / gpus)",
    ):
        assert words in text, words
    out = json.loads(run(capsys, "v3_671b", "--serve", "--gpus", "32", "--tp", "4", "--json"))
    assert out["tp"] == 4 and out["published_decode_bound_seconds"]["50 GB/s"] == pytest.approx(14.76e-3, abs=1e-5)
    text = run(capsys, "v3_671b", "--compare", "llama3_405b", "--explain")
    assert "10.2x" in text and "11.06x" in text and "6 x parameters x tokens" in text


def test_memory_of_one_device(capsys: pytest.CaptureFixture[str]) -> None:
    """A 16B model is tuned by adapters on one GPU, and not as a whole."""
    tuned = ["v2_lite_16b", "--memory", "--gpu", "h100", "--seq", "2048"]
    assert "adapters of rank 16" in run(capsys, *tuned, "--lora", "16")
    assert plan.main(tuned) == 1
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert plan.main([*tuned, "--ignore-memory"]) == 0
    capsys.readouterr()
    out = json.loads(
        run(capsys, "laptop", "--memory", "--seq", "128", "--micro-batch", "8", "--moments", "fp32", "--recompute", "none", "--json")
    )
    assert out["fits"] and out["parts"]["moments"] == 2 * out["parts"]["weights"]


def test_formats_of_the_gemms(capsys: pytest.CaptureFixture[str]) -> None:
    layout = ["v2_lite_16b", "--layout", "dp8,ep8", "--batch", "64", "--json"]
    fp8, bf16 = (json.loads(run(capsys, *layout, *more)) for more in ([], ["--dtype", "bf16"]))
    assert bf16["step_seconds"] > fp8["step_seconds"] and bf16["memory"]["parts"]["fp8_copies"] == 0


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
        (["v3_671b", "--gpus", "8", "--gpu", "h100", "--batch", "64"], r"no layout of 8 x h100 fits.*use 256 GPUs \(pp8,dp32,ep32"),
        (["v3_671b", "--gpus", "6", "--gpu", "h100", "--batch", "7"], r"no layout of 6 x h100"),
        (["v3_671b", "--layout", "pp8,dp256,ep64"], r"needs .* of 80 GB on the fullest GPU.*use pp\d+,dp\d+.*--ignore-memory"),
        (["v3_671b", "--layout", "pp16,dp128,ep64", "--batch", "15488"], r"even number of micro-batches, at least 32, not 121; use 122"),
        (["v3_671b", "--serve", "--gpus", "1"], r"use \d+ GPUs or more"),
        (["v3_671b", "--serve", "--gpus", "16", "--gpu", "a100", "--dtype", "fp8"], "no FP8 arithmetic"),
        (["v3_671b", "--serve", "--gpus", "32", "--tp", "3"], "use one of 1, 2, 4, 8"),
        (["v3_671b", "--gpus", "0"], r"--gpus \(0\) must be positive"),
        (["v3_671b", "--price", "-1"], "at least 0"),
        (["v2_lite_16b", "--table"], "rorqual plan v3_671b --table"),
        (["v2_lite_16b", "--memory", "--dtype", "fp8"], "BF16 on a GPU"),
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["v3_671b", "--serve", "--search"],
        ["v3_671b", "--serve", "--html", "x.html"],
        ["v3_671b", "--table", "--explain"],
        ["v3_671b", "--search", "--layout", "dp8"],
        [],
    ],
)
def test_what_does_not_go_together_is_a_usage_error(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        plan.main(arguments)
    assert caught.value.code == 2


def test_a_layout_that_does_not_fit_can_be_planned_anyway(capsys: pytest.CaptureFixture[str]) -> None:
    assert "DOES NOT FIT" in run(capsys, "v3_671b", "--layout", "pp8,dp256,ep64", "--ignore-memory")


def test_the_documents_table_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[2] / "docs" / "planner.md"
    assert run(capsys, "v3_671b", "--table").rstrip() in page.read_text(encoding="utf-8")
