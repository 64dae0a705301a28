"""True shapes with random weights: what fits is decided before anything is allocated, and a small preset runs."""

from __future__ import annotations

import pytest

from rorqual.cli import generate, partial
from rorqual.errors import ConfigError
from rorqual.presets import PRESETS, Member
from tests.tiny import t0


def test_the_reports_layers_are_measured_before_they_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers 0..3 of 671B: three dense and one MoE layer, 17.0 GB in FP8 with embedding and head in BF16, 60 GB in FP32."""
    monkeypatch.setattr(partial, "available_bytes", lambda: 24_000_000_000)
    part = partial.plan_part("v3_671b", (0, 4), None)
    assert part.fp8 and part.config.num_hidden_layers == 4 and part.config.first_k_dense_replace == 3
    assert part.num_bytes == pytest.approx(17.0e9, rel=0.01)
    assert partial.plan_part("v3_671b", (3, 4), None).config.first_k_dense_replace == 0
    with pytest.raises(
        ConfigError, match=r"take 60\.\d GB in fp32 and 1.5 GB beside, 24.0 GB are free; use fewer layers, or --weights fp8 \(17\.\d GB\)"
    ):
        partial.plan_part("v3_671b", (0, 4), "fp32")
    with pytest.raises(ConfigError, match=r"24.0 GB are free; use fewer layers$"):
        partial.plan_part("v3_671b", (0, 6), None)
    with pytest.raises(ConfigError, match="range inside 0:61"):
        partial.plan_part("v3_671b", (60, 62), None)
    assert not partial.plan_part("v2_lite_16b", (0, 2), None).fp8


@pytest.mark.parametrize("weights", ["fp32", "fp8"])
def test_a_small_preset_runs_and_tells_its_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], weights: str
) -> None:
    monkeypatch.setattr("rorqual.cli.partial.member", lambda name: Member("T0", t0()))
    arguments = [
        "--preset",
        "t0",
        "--layers",
        "0:2",
        "--random",
        "abc",
        "--weights",
        weights,
        "--max-new-tokens",
        "3",
        "--temperature",
        "0",
    ]
    assert generate.main(arguments) == 0
    first = capsys.readouterr()
    assert len(first.out.split()) == 3 and "peak memory" in first.err and "2 layers" in first.err
    assert generate.main(arguments) == 0
    assert capsys.readouterr().out == first.out


@pytest.mark.parametrize(
    "arguments", [["--preset", "v3_671b", "a"], ["--random", "a", "b"], ["--preset", "v3_671b", "--random", "a", "b"], ["a"]]
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        generate.main(arguments)
    assert "usage: rorqual generate" in capsys.readouterr().err


def test_presets_are_the_published_ones() -> None:
    with pytest.raises(ConfigError, match="is not known"):
        partial.plan_part("v9", None, None)
    assert "v3_671b" in PRESETS and partial.byte_ids("hé", 300) == [104, 195, 169] and partial.byte_ids("", 300) == [0]
