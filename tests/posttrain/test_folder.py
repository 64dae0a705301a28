"""The folder of a post-training run: begun once, resumed by the same configuration only, replaced when asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rorqual.errors import CheckpointError, ConfigError, RunError
from rorqual.posttrain.folder import TuningFolder, check_same_start, read_tuning
from rorqual.posttrain.sft_config import SFTConfig

CONFIG = SFTConfig(model="m", data="d")


def test_begin_resume_and_overwrite(tmp_path: Path):
    with TuningFolder(tmp_path / "run") as folder:
        folder.open(CONFIG, {"kind": "sft"}, resume=False, overwrite=False)
        folder.adapter.mkdir()
        folder.samples.mkdir()
        assert read_tuning(folder.path, SFTConfig) == CONFIG and json.loads(folder.lineage.read_text()) == {"kind": "sft"}
        folder.open(CONFIG, {}, resume=True, overwrite=False)
        with pytest.raises(ConfigError, match="epochs was 2, now 3; resume without the change"):
            folder.open(SFTConfig(model="m", data="d", epochs=3), {}, resume=True, overwrite=False)
        with pytest.raises(RunError, match="already holds a run"):
            folder.open(CONFIG, {}, resume=False, overwrite=False)
        folder.open(CONFIG, {}, resume=False, overwrite=True)
        assert (
            not folder.adapter.exists() and not folder.samples.exists() and folder.hf.name == "hf" and folder.tokenizer.name == "tokenizer"
        )
        folder.open(SFTConfig(model="m", data="other"), {"kind": "sft"}, resume=False, overwrite=False)  # nothing was done yet
        assert read_tuning(folder.path, SFTConfig).data == "other"
        with pytest.raises(RunError, match="in use"):
            TuningFolder(tmp_path / "run").__enter__()


def test_other_data_or_another_base_are_named():
    check_same_start(Path("c"), {"data_fingerprint": "a", "step": 3}, {"data_fingerprint": "a"})
    with pytest.raises(CheckpointError, match="c was trained with data_fingerprint a, given is b"):
        check_same_start(Path("c"), {"data_fingerprint": "a"}, {"data_fingerprint": "b"})


def test_what_is_no_run_of_this_kind_is_refused(tmp_path: Path):
    with pytest.raises(RunError, match="no run to resume"):
        read_tuning(tmp_path, SFTConfig)
    (tmp_path / "config.json").write_text('{"kind": "grpo"}')
    with pytest.raises(RunError, match="no run of kind 'sft'"):
        read_tuning(tmp_path, SFTConfig)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match="cannot read"):
        read_tuning(tmp_path, SFTConfig)
