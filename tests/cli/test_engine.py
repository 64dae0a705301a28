"""Options that `serve` and `chat` share, and what they open."""

from __future__ import annotations

import argparse
import re

import pytest
import torch

from rorqual.cli import memory_check
from rorqual.cli.engine import add_options, open_engine
from rorqual.errors import DeviceError
from rorqual.inference.llm import LLM
from rorqual.kernels import native
from tests.server.real import model_folder


def test_the_engine_is_as_asked(tmp_path):
    folder = model_folder(tmp_path)
    parser = argparse.ArgumentParser()
    add_options(parser)
    plain = open_engine(parser.parse_args([str(folder)]))
    assert (plain.served.name, plain.served.style, plain.served.max_model_len, plain.served.has_mtp) == ("tiny", "v3", 1024, True)
    assert plain.engine.auto and plain.engine.num_drafts == 1 and plain.engine.scheduler.max_num_seqs == 64
    options = ["--speculative", "off", "--max-num-seqs", "3", "--max-num-batched-tokens", "99", "--cache-gb", "0.001"]
    asked = open_engine(parser.parse_args([str(folder), *options]), "other", 5)
    assert asked.served.name == "other" and asked.engine.num_drafts == 0 and asked.engine.pool.num_blocks < plain.engine.pool.num_blocks
    scheduler = asked.engine.scheduler
    assert (scheduler.max_num_seqs, scheduler.budget, scheduler.queue_limit) == (3, 99, 5)


def test_a_cache_that_does_not_fit_is_refused_before_the_folder_is_read(tmp_path, monkeypatch, capsys):
    folder = model_folder(tmp_path)
    parser = argparse.ArgumentParser()
    add_options(parser)
    monkeypatch.setattr(memory_check, "available_memory", lambda device: 10**9)
    with pytest.raises(DeviceError, match=r"cache .*give the cache less"):
        open_engine(parser.parse_args([str(folder), "--cache-gb", "2"]))
    assert "memory for" in capsys.readouterr().err
    assert open_engine(parser.parse_args([str(folder), "--cache-gb", "0.01"])).engine.pool.num_blocks > 0


@pytest.mark.skipif(native.library().library is None, reason=f"no compiled kernels: {native.library().detail}")
@pytest.mark.parametrize(("weights", "most"), [("fp16", 1e-3), ("int8", 0.1)])
def test_lossy_weights_print_their_error(tmp_path, capsys, weights, most):
    parser = argparse.ArgumentParser()
    add_options(parser)
    opened = open_engine(parser.parse_args([str(model_folder(tmp_path)), "--weights", weights]))
    found = re.search(rf"weights in {weights}: relative error (\S+) of the matrices, (\S+) of the logits", capsys.readouterr().err)
    assert found is not None and 0 < float(found[1]) < most and 0 < float(found[2]) < most
    assert opened.engine.runner.weight_error() is not None


def test_a_gpu_is_taken_where_there_is_one_and_asked_for_in_vain_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = model_folder(tmp_path)
    parser = argparse.ArgumentParser()
    add_options(parser)
    assert open_engine(parser.parse_args([str(folder)])).engine.storage.values.device.type == "cpu"
    with pytest.raises(DeviceError, match="no CUDA device"):
        open_engine(parser.parse_args([str(folder), "--device", "cuda"]))
    with pytest.raises(DeviceError, match="no CUDA device"):
        LLM(folder, device="cuda")
