"""The memory estimate that verbs print, and the refusal of what cannot fit."""

from __future__ import annotations

import argparse

import pytest

from rorqual.cli.memory_check import add_option, available_memory, check_memory
from rorqual.errors import DeviceError
from rorqual.planner.estimate import MARGIN, PROGRAM, Estimate

ESTIMATE = Estimate("training", {"weights": 1e9, "activations": 3e9})


def test_what_fits_is_printed_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    check_memory(ESTIMATE, 8e9)
    need = 4e9 * (1 + MARGIN) + PROGRAM
    assert capsys.readouterr().err == f"memory for training: about {need / 1e9:.4g} GB (activations 3 GB, weights 1 GB); 8 GB are free\n"
    check_memory(ESTIMATE, None)
    assert "free" not in capsys.readouterr().err


def test_what_does_not_fit_is_refused_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        DeviceError, match=r"needs about 4\.6 GB of memory and 2 GB are free; the largest part is activations \(3 GB\).*--ignore-memory"
    ):
        check_memory(ESTIMATE, 2e9)
    check_memory(ESTIMATE, 2e9, force=True)
    assert "memory for training" in capsys.readouterr().err


def test_the_option_and_the_machine() -> None:
    parser = argparse.ArgumentParser()
    add_option(parser)
    assert parser.parse_args([]).ignore_memory is False and parser.parse_args(["--ignore-memory"]).ignore_memory
    free = available_memory("cpu")
    assert free is None or free > 0
