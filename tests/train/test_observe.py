"""Validation, samples and the final look write records and change nothing."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from rorqual.train import observe
from rorqual.train.metrics import MetricsLog, Progress
from rorqual.train.state import build
from tests.train.tiny_run import TinyData, tiny_run


def test_looking_at_a_run(tmp_path: Path) -> None:
    run = tiny_run(sample_prompts=("def f", "x" * 600), sample_tokens=5)
    state = build(run, torch.device("cpu"), torch.float32)
    assert state.ema is not None
    state.ema.update(1, {name: w * 2 for name, w in state.optimizer.master.items()})
    before = {name: t.clone() for name, t in state.tensors().items()}
    random = torch.get_rng_state()
    log, progress = MetricsLog(tmp_path / "metrics.jsonl"), Progress(1, 0, enabled=False)
    observe.validate(run, state, TinyData(), log, progress)
    observe.sample(run, state, TinyData(), log)
    observe.sample(run, state, TinyData(), log)
    final = observe.final(run, state, TinyData(), log, progress)
    log.close()
    assert all(torch.equal(t, before[name]) for name, t in state.tensors().items()) and torch.equal(torch.get_rng_state(), random)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["validation"] + ["sample"] * 6 + ["validation"] * 2
    assert (rows[0]["source"], rows[0]["validation_tokens"], rows[0]["validation_bytes"]) == ("code", 40, 34)
    assert [row["text"] for row in rows[1:3]] == [row["text"] for row in rows[3:5]]  # the draw is a function of the seed
    assert rows[1]["prompt"] == "def f" and len(rows[2]["text"].encode()) >= 1  # a prompt longer than the context is cut, not refused
    assert final == rows[-2:] and [row["weights"] for row in final] == ["ema", "raw"]
    assert final[1]["validation_tokens"] == 100 and final[1]["sliding"] and final[0]["loss"] != rows[0]["loss"]
