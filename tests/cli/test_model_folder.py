"""Which weights and which tokenizer a folder stands for: an export, a run's export, a run's newest checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from rorqual.checkpoint import hf, resume
from rorqual.cli import model_folder
from rorqual.cli.model_folder import load_folder
from rorqual.errors import CheckpointError, TokenizerError
from rorqual.model.transformer import CausalLM
from rorqual.recipes.laptop import laptop
from rorqual.tokenizer import bpe
from tests.checkpoint import members
from tests.checkpoint.folders import build, same
from tests.tiny import t0

CONFIG = t0(vocab_size=4096, max_position_embeddings=1024)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    bpe.train(["the whale"], 300, folder)
    return folder


@pytest.fixture
def run(tmp_path: Path, tokenizer: Path) -> Path:
    """A run that was stopped after step 2 and has exported nothing."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(dataclasses.replace(laptop(), model=CONFIG).to_json())
    (folder / "lineage.json").write_text("{}")
    for step in (1, 2):
        resume.save(resume.step_folder(folder / "checkpoints", step), resume.logical_tensors(build(CONFIG, seed=step)), {"step": step})
    bpe.load(tokenizer).save(folder / "data" / "tokenizer")
    return folder


def test_a_model_folder(tmp_path, tokenizer):
    folder = hf.export(build(t0(vocab_size=512)), tokenizer, tmp_path / "model")
    loaded = load_folder(folder)
    assert same(loaded.model, build(t0(vocab_size=512))) and loaded.origin == folder and loaded.notices == []
    assert loaded.tokenizer.fingerprint == bpe.load(tokenizer).fingerprint


def test_a_run_without_an_export_gives_its_newest_checkpoint(run):
    loaded = load_folder(run)
    assert same(loaded.model, build(CONFIG, seed=2)) and loaded.origin.name == "step-00000002"


def test_a_runs_export_comes_first(run, tokenizer):
    hf.export(build(CONFIG, seed=9), tokenizer, run / "hf")
    loaded = load_folder(run)
    assert same(loaded.model, build(CONFIG, seed=9)) and loaded.origin == run / "hf"


@pytest.mark.parametrize(("made", "message"), [([], "is not a folder"), (["x/"], "neither a run nor a model folder")])
def test_what_is_no_model_is_refused(tmp_path, made, message):
    for name in made:
        (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match=message):
        load_folder(tmp_path / "x")


def test_a_run_before_its_first_checkpoint_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(dataclasses.replace(laptop(), model=CONFIG).to_json())
    (tmp_path / "lineage.json").write_text("{}")
    with pytest.raises(CheckpointError, match="without a whole checkpoint yet"):
        load_folder(tmp_path)


def test_a_folder_without_a_tokenizer_takes_the_one_named_and_without_or_with_a_foreign_one_is_refused(tmp_path, tokenizer):
    bare = hf.export(build(t0(vocab_size=512)), None, tmp_path / "bare")
    with pytest.raises(CheckpointError, match="has no tokenizer.json"):
        load_folder(bare)
    assert load_folder(bare, tokenizer).tokenizer.fingerprint == bpe.load(tokenizer).fingerprint
    small = hf.export(build(t0()), tokenizer, tmp_path / "small")
    with pytest.raises(CheckpointError, match="token ids up to 28., the model's embedding ends at 255"):
        load_folder(small)
    (bare / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError):
        load_folder(bare)


@pytest.mark.parametrize(("name", "kept"), [("v3_671b", "fp8"), ("moonlight_16b", "bf16")])
def test_what_does_not_fit_in_fp32_is_kept_as_it_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kept: str) -> None:
    folder = members.write(tmp_path / name, name)
    assert model_folder.fitting_weights(folder) == ("fp32", [])
    monkeypatch.setattr("rorqual.kernels.memory.available_bytes", lambda: 1_500_000_000)
    chosen, why = model_folder.fitting_weights(folder)
    assert chosen == kept and "GB in FP32" in why[0]
    loaded = model_folder.load_folder(folder)
    assert any(kept in notice for notice in loaded.notices) and loaded.tokenizer.vocab_size > 256


def test_off_the_cpu_a_model_is_in_bf16_unless_told_otherwise():
    for weights, want in ((None, torch.bfloat16), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        model = CausalLM(t0())
        model_folder._move(model, "meta", weights)
        parameters = dict(model.named_parameters())
        assert {p.device.type for p in parameters.values()} == {"meta"}
        assert {p.dtype for name, p in parameters.items() if "mlp.gate.weight" not in name} == {want}
        assert {p.dtype for name, p in parameters.items() if "mlp.gate.weight" in name} == {torch.float32}  # the router's
    before = CausalLM(t0())
    model_folder._move(before, "cpu", None)
    assert before.model.norm.weight.dtype == torch.float32 and before.model.norm.weight.device.type == "cpu"
