"""The judge of an export: another model's logits are told apart, an absent peer is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import safetensors.torch

from rorqual.checkpoint import hf
from rorqual.cli import check
from rorqual.errors import CheckpointError, MissingExtraError
from tests.checkpoint import members
from tests.checkpoint.folders import build
from tests.tiny import t0


def test_an_absent_peer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match="hf"):
        check.check_hf(tmp_path)


@pytest.mark.peer
def test_k2_is_judged_by_the_class_of_v3(tmp_path: Path) -> None:
    folder = members.write(tmp_path / "k2", "kimi_k2", weights="bf16")
    assert "within" in check.check_hf(folder)


@pytest.mark.peer
def test_a_difference_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hf.export(build(t0()), None, tmp_path / "hf")
    other = build(t0(), 1)
    monkeypatch.setattr(hf, "load", lambda path: (other, hf.LoadReport(other.config, [], [], [])))
    with pytest.raises(CheckpointError, match="logits differ from transformers'"):
        check.check_hf(folder)
    assert safetensors.torch.load_file(folder / "model.safetensors")
