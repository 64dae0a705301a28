"""Memory of a load: nothing is taken before a bad folder is refused, and a good one needs the model plus a block of one tensor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from rorqual.checkpoint import hf, reader
from rorqual.errors import CheckpointError
from rorqual.model.transformer import CausalLM
from tests.tiny import t0

MEASURE = """
import re, sys, threading
from rorqual.checkpoint import hf

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

before, most, done = anonymous(), 0, threading.Event()

def watch():
    global most
    while not done.wait(0.0005):
        most = max(most, anonymous())

thread = threading.Thread(target=watch)
thread.start()
model, _ = hf.load(sys.argv[1])
done.set(); thread.join()
print(sum(p.numel() * p.element_size() for p in model.parameters()), max(p.numel() * p.element_size() for p in model.parameters()), max(most, anonymous()) - before)
"""


def _folder(place: Path) -> Path:
    model = CausalLM(t0(vocab_size=40_000, hidden_size=256, n_routed_experts=64, moe_intermediate_size=128))
    model.init_weights(1)
    return hf.export(model, None, place / "model", dtype="bf16")


@pytest.mark.parametrize("fault", ["missing", "shape", "truncated"])
def test_a_bad_folder_takes_no_memory(tmp_path, monkeypatch, fault):
    folder = hf.export(CausalLM(t0()), None, tmp_path / "model")
    file = next(folder.glob("*.safetensors"))
    if fault == "truncated":
        file.write_bytes(file.read_bytes()[:-8])
    else:
        held = load_file(file)
        last = sorted(held)[-1]
        if fault == "missing":
            del held[last]
        else:
            held[last] = held[last][:-1].clone()
        save_file(held, file)
    monkeypatch.setattr(reader, "_empty_model", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(CheckpointError):
        hf.load(folder)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc to see anonymous memory")
def test_a_load_needs_the_model_and_a_block(tmp_path):
    done = subprocess.run([sys.executable, "-c", MEASURE, str(_folder(tmp_path))], capture_output=True, text=True, check=True)
    model, largest, taken = map(int, done.stdout.split())
    assert model > 80e6 and taken < model + largest + 30e6, (model, largest, taken)
