"""Where post-training starts: a model folder, a run's export, a run's newest checkpoint; everything else is refused with a reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from rorqual.adapters.config import LoraConfig
from rorqual.checkpoint import hf
from rorqual.cli.main import main
from rorqual.cli.model_folder import load_folder
from rorqual.errors import CheckpointError, RunError
from rorqual.posttrain.base import open_base
from rorqual.posttrain.sft import run_sft
from rorqual.posttrain.sft_config import RenderConfig, SFTConfig
from rorqual.tokenizer import bpe
from rorqual.train.trainer import train
from tests.posttrain.tiny_chat import TEXTS, write_model, write_talks
from tests.train.tiny_run import TinyData, tiny_run


def test_a_model_folder_and_a_runs_export(tmp_path: Path):
    model = write_model(tmp_path)
    base = open_base(model)
    assert base.stored == "fp32" and base.tokenizer().vocab_size <= 320 and not base.checkpoint
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    shutil.copytree(model, run / "hf")
    again = open_base(run)
    assert again.folder == run / "hf" and again.fingerprint() == base.fingerprint()
    assert torch.equal(again.load().model.norm.weight, base.load().model.norm.weight)
    weights = run / "hf" / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[len(changed) // 2 :] = reversed(changed[len(changed) // 2 :])
    weights.write_bytes(changed)
    assert open_base(run).fingerprint() != base.fingerprint()  # of the same size, other values
    assert base.load("bf16").model.norm.weight.dtype == torch.bfloat16
    half = hf.export(base.load(), base.tokenizer_folder, tmp_path / "half", dtype="bf16")
    assert open_base(half).stored == "bf16" and open_base(half).fingerprint() != base.fingerprint()


def test_a_run_without_an_export_gives_its_newest_checkpoint(tmp_path: Path):
    train(tiny_run(2, model={"vocab_size": 320}), tmp_path / "run", data=TinyData(), progress=False, ceiling_gflops=1.0)
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        open_base(tmp_path / "run")
    bpe.train(TEXTS, 320, tmp_path / "run" / "tokenizer")
    base = open_base(tmp_path / "run")
    assert base.checkpoint and base.config.vocab_size == 320 and base.load().lm_head is not None
    with pytest.raises(CheckpointError, match="export it with --to fp8"):
        base.load("fp8")


def test_what_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="is not a folder"):
        open_base(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_base(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "lineage.json").write_text('{"kind": "sft", "base": "somewhere"}')
    with pytest.raises(RunError, match="has not finished"):
        open_base(tmp_path)


def test_adapters_over_adapters_are_merged_and_exported(tmp_path: Path):
    """A run with an adapter is a base like any other, for another adapter too."""
    model = write_model(tmp_path)
    data = write_talks(tmp_path / "talks.jsonl", 9)
    below = model
    for name in ("one", "two"):
        config = SFTConfig(
            model=str(below), data=str(data), render=RenderConfig(max_tokens=64), learning_rate=1e-2, epochs=1, lora=LoraConfig(rank=2), device="cpu"
        )  # fmt: skip
        below = run_sft(config, tmp_path / name, progress=False).folder
    base = open_base(below)
    assert base.adapters == (tmp_path / "one" / "adapter", tmp_path / "two" / "adapter") and base.folder == model
    wanted = open_base(model).load().state_dict()["lm_head.weight"], base.load().state_dict()
    assert torch.equal(wanted[0], wanted[1]["lm_head.weight"])
    assert main(["export", str(below), str(tmp_path / "out")]) == 0
    exported = hf.load(tmp_path / "out")[0].state_dict()
    for name, tensor in wanted[1].items():
        torch.testing.assert_close(exported[name], tensor, rtol=1e-5, atol=1e-6)
    used = load_folder(below).model.state_dict()
    assert all(torch.allclose(used[name], tensor, atol=1e-6) for name, tensor in wanted[1].items())
    assert base.fingerprint() != open_base(tmp_path / "one").fingerprint() != open_base(model).fingerprint()


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path):
    model = write_model(tmp_path, vocab_size=280)
    with pytest.raises(CheckpointError, match="belongs to another model"):
        open_base(model).tokenizer()
