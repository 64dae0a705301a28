"""The judge of an export: another model's logits are told apart, an absent peer is named."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rorqual.checkpoint import hf
from rorqual.checkpoint.source import FolderSource
from rorqual.errors import CheckpointError, MissingExtraError
from rorqual.inference import handover
from tests.checkpoint import members
from tests.checkpoint.folders import build
from tests.tiny import t0


def test_an_absent_peer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match="hf"):
        handover.check_hf(tmp_path)


@pytest.mark.peer
def test_k2_is_judged_by_the_class_of_v3(tmp_path: Path) -> None:
    folder = members.write(tmp_path / "k2", "kimi_k2", weights="bf16")
    assert "within" in handover.check_hf(folder)


@pytest.mark.peer
def test_a_difference_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hf.export(build(t0()), None, tmp_path / "hf")
    other = build(t0(), 1)
    monkeypatch.setattr(hf, "load", lambda path: (other, hf.LoadReport(other.config, [], [], [])))
    with pytest.raises(CheckpointError, match="logits differ from transformers'"):
        handover.check_hf(folder)
    assert safetensors.torch.load_file(folder / "model.safetensors")


def test_without_the_package_the_check_says_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(handover.NODE_FOLDER, str(tmp_path))
    with pytest.raises(CheckpointError, match="needs node and its package node-llama-cpp"):
        handover.llama_tokens(tmp_path / "m.gguf", [1])


def test_tokens_are_compared_up_to_a_tie(tmp_path: Path) -> None:
    folder = members.write(tmp_path / "v3", "v3_671b")
    with FolderSource(folder) as source:
        model = handover.own_model(source)
    ids = [3, 4, 5]
    for _ in range(4):
        with torch.no_grad():
            ids.append(int(model.logits(model(torch.tensor([ids])).hidden[0, -1]).argmax()))
    ours = ids[3:]
    assert handover.compare(model, [3, 4, 5], ours, count=4) == (4, float("inf"))
    same, gap = handover.compare(model, [3, 4, 5], [*ours[:2], ours[2] ^ 1, 0], count=4)
    assert same == 2 and gap > 0
    assert handover.compare(model, [3, 4, 5], ours[:3], count=4)[0] == 3  # it ended early, ours does not


def test_launch_lines_name_the_folder_and_the_drafts() -> None:
    folder = Path("runs/a b/hf")
    plain, sglang = handover.launch_lines("vllm", folder, t0(num_nextn_predict_layers=0))
    assert shlex.split(plain) == ["vllm", "serve", "runs/a b/hf"] and shlex.split(sglang)[-1] == "runs/a b/hf"
    drafts = shlex.split(handover.launch_lines("vllm", folder, t0())[0])
    assert drafts[3:] == ["--speculative-config", '{"method": "mtp", "num_speculative_tokens": 1}']
    assert shlex.split(handover.launch_lines("llamacpp", Path("m.gguf"), t0())[0]) == ["llama-server", "-m", "m.gguf"]
    assert "runs/a b/hf" in handover.launch_lines("hf", folder, t0())[0]


def _interpreter(folder: Path, line: str) -> str:
    """An interpreter that says `line` whatever it is asked to run."""
    path = folder / "python-with-vllm"
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return str(path)


def test_vllm_is_asked_and_its_failure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(handover.VLLM_PYTHON, raising=False)
    with pytest.raises(CheckpointError, match=f"needs vLLM.*{handover.VLLM_PYTHON}"):
        handover.vllm_tokens(tmp_path, [3], t0())
    said = 'echo "[$VLLM_MLA_DISABLE]" >&2; echo "ValueError: head size 24" >&2; exit 1'
    monkeypatch.setenv(handover.VLLM_PYTHON, _interpreter(tmp_path, said))
    with pytest.raises(CheckpointError, match=r"vLLM did not run .*: ValueError: head size 24$"):
        handover.vllm_tokens(tmp_path, [3], t0())
    monkeypatch.setenv(handover.VLLM_PYTHON, _interpreter(tmp_path, 'echo noise; echo "TOKENS [5, 6$VLLM_MLA_DISABLE]"'))
    assert handover.vllm_tokens(tmp_path, [3], t0()) == [5, 61]  # T0's latent is too narrow for vLLM's own kernels
    assert handover.vllm_tokens(tmp_path, [3], t0(kv_lora_rank=512, qk_rope_head_dim=64)) == [5, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["python-with-vllm"]


def test_other_tokens_of_vllm_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = members.write(tmp_path / "v3", "v3_671b")
    with FolderSource(folder) as source:
        monkeypatch.setenv(handover.VLLM_PYTHON, _interpreter(tmp_path, 'echo "TOKENS [0, 0, 0]"'))
        with pytest.raises(CheckpointError, match="our own token 1 is another"):
            handover.check("vllm", folder, source, None)


@pytest.mark.peer
@pytest.mark.timeout(600)
def test_vllm_gives_the_same_greedy_tokens(tmp_path: Path) -> None:
    if not os.environ.get(handover.VLLM_PYTHON):
        pytest.skip(f"vLLM is not installed; name its interpreter in {handover.VLLM_PYTHON}")
    wide = t0(
        vocab_size=512,
        hidden_size=256,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
        qk_nope_head_dim=64,
        v_head_dim=64,
        moe_intermediate_size=128,
    )
    folder = hf.export(build(wide), None, tmp_path / "hf")
    with FolderSource(folder) as source:
        assert handover.check("vllm", folder, source, None) == "check: vLLM gives the same 16 greedy tokens"
