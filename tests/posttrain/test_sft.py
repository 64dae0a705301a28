"""Fine-tuning: packed equals unpadded, a resumed run equals an uninterrupted one to the bit, frozen bias, steps without targets."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rorqual.adapters import peft
from rorqual.adapters.config import LoraConfig
from rorqual.checkpoint import hf
from rorqual.errors import CheckpointError, ConfigError, RunError
from rorqual.model.transformer import CausalLM
from rorqual.posttrain import packing, sft, sft_data
from rorqual.posttrain.sft import run_sft
from rorqual.posttrain.sft_config import RenderConfig, SFTConfig
from rorqual.train.loss import compute_loss
from tests.posttrain.tiny_chat import write_model, write_talks
from tests.tiny import t0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sft")
    write_model(root)
    write_talks(root / "talks.jsonl")
    return root


def config(place: Path, **changes: Any) -> SFTConfig:
    fields = {"model": str(place / "model"), "data": str(place / "talks.jsonl"), "render": RenderConfig(max_tokens=32), "learning_rate": 3e-3,
              "final_learning_rate": 3e-4, "batch_sequences": 4, "micro_batch_sequences": 2, "device": "cpu", "checkpoint_every_steps": 3}  # fmt: skip
    return SFTConfig(**{**fields, **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return hf.load(folder)[0].state_dict()


def train_lines(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train"]


def test_it_learns_and_writes_a_folder_with_a_frozen_router_bias(place, tmp_path):
    result = run_sft(config(place, epochs=3), tmp_path / "out", progress=False)
    lines = train_lines(tmp_path / "out")
    assert result.signal is None and result.step == result.steps == len(lines)
    assert lines[-1]["main_loss"] < 0.9 * lines[0]["main_loss"] and lines[-1]["mtp_loss"] < lines[0]["mtp_loss"]
    assert lines[0]["lr"] == 3e-3 and lines[-1]["lr"] == pytest.approx(3e-4)
    before, after = weights(place / "model"), weights(tmp_path / "out" / "hf")
    biases = [name for name in before if name.endswith("e_score_correction_bias")]
    assert biases and all(torch.equal(before[name], after[name]) for name in biases)
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])


def test_packed_rows_have_the_loss_and_gradient_of_the_samples_alone(place):
    """Report section 5.1 and F29: positions, attention, MTP targets and balance loss are each sample's own."""
    tokenizer = sft.open_base(place / "model").tokenizer()
    report = sft_data.DataReport()
    found = [one for _, one in sft_data.read_lines(place / "talks.jsonl", tokenizer, RenderConfig(max_tokens=64), report)]
    samples = memory_samples(found[:7])
    model = CausalLM(t0(vocab_size=320, initializer_range=0.3)).double()
    model.init_weights(5)
    rows = packing.pack(samples.all_places(), 64)
    assert max(map(len, rows)) > 1
    count = int(sum(learned[1:].sum() for _, learned in map(samples.read, range(7))))

    def terms(groups: list[list[int]]) -> tuple[list[float], dict[str, torch.Tensor]]:
        model.zero_grad()
        total = torch.zeros(4, dtype=torch.float64)
        for group in groups:
            packed = packing.fill(samples, [group])
            segments = torch.from_numpy(packed.segment_ids)
            alone = len(group) == 1
            out = compute_loss(
                model, torch.from_numpy(packed.input_ids), torch.from_numpy(packed.targets), num_targets=count, mtp_loss_weight=0.3,
                aux_loss_alpha=0.01, segment_ids=None if alone else segments, token_mask=None if alone else segments >= 0,
            )  # fmt: skip
            out.loss.backward()
            total += torch.stack([out.loss.detach(), out.main, out.mtp, out.balance]).double()
        return total.tolist(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    packed_loss, packed_gradient = terms(rows)
    alone_loss, alone_gradient = terms([[number] for number in range(7)])
    assert packed_loss == pytest.approx(alone_loss, rel=1e-6)
    for name, gradient in alone_gradient.items():
        torch.testing.assert_close(packed_gradient[name], gradient, rtol=1e-4, atol=1e-7)


def memory_samples(found: list[Any]) -> sft_data.Samples:
    import numpy as np

    codes = [np.where(one.learned, one.ids, ~np.array(one.ids)) for one in found]
    return sft_data.Samples(np.concatenate(codes).astype(np.int32), np.cumsum([0, *map(len, codes)]).astype(np.int64))


def test_padding_changes_nothing(place):
    model = CausalLM(t0(vocab_size=320, initializer_range=0.1))
    model.init_weights(5)
    samples = memory_samples(
        [sft_data.Sample(list(range(5, 14)), [False] * 3 + [True] * 6), sft_data.Sample([7, 8, 9], [False, True, True])]
    )
    losses = []
    for rows in ([[0], [1]], [[0, 1]]):
        packed = packing.fill(samples, rows)
        segments = torch.from_numpy(packed.segment_ids)
        out = compute_loss(
            model, torch.from_numpy(packed.input_ids), torch.from_numpy(packed.targets), num_targets=8, mtp_loss_weight=0.3, aux_loss_alpha=0.01,
            segment_ids=segments, token_mask=segments >= 0,
        )  # fmt: skip
        losses.append(out.loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(
    "stops",
    [
        (2,),
        pytest.param((1,), marks=pytest.mark.slow),
        pytest.param((2, 5), marks=pytest.mark.slow),
        pytest.param((4,), marks=pytest.mark.slow),
    ],
)
def test_interrupted_and_resumed_is_uninterrupted_to_the_bit(place, tmp_path, monkeypatch, stops):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_sft(config(place), whole, progress=False)
    real = sft.train_step
    results = []
    for at in stops:
        begun = {"n": len(train_lines(parts)) if parts.exists() else 0}

        def stopping(*args: Any, at: int = at, begun: dict[str, int] = begun, **kwargs: Any) -> Any:
            if begun["n"] == at:
                signal.raise_signal(signal.SIGTERM)
            begun["n"] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(sft, "train_step", stopping)
        results.append(run_sft(config(place), parts, resume_run=bool(results), progress=False))
        assert results[-1].signal == signal.SIGTERM and results[-1].step == at and not (parts / "hf").exists()
    monkeypatch.setattr(sft, "train_step", real)
    run_sft(config(place), parts, resume_run=True, progress=False)
    told = [[(row["step"], row["loss"], row["grad_norm"], row["lr"], row["tokens"]) for row in train_lines(out)] for out in (whole, parts)]
    assert told[0] == told[1]
    first, second = weights(whole / "hf"), weights(parts / "hf")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_resumed_run_refuses_other_data_and_another_configuration(place, tmp_path):
    out = tmp_path / "out"
    run_sft(config(place, epochs=1), out, progress=False)
    with pytest.raises(RunError, match="already holds a run"):
        run_sft(config(place, epochs=1), out, progress=False)
    with pytest.raises(ConfigError, match=r"epochs was 1, now 2"):
        run_sft(config(place), out, resume_run=True, progress=False)
    other = write_talks(tmp_path / "other.jsonl", 9)
    run_sft(config(place, epochs=1, data=str(other)), tmp_path / "second", progress=False)
    write_talks(other, 8)
    with pytest.raises(CheckpointError, match="data_fingerprint"):
        run_sft(config(place, epochs=1, data=str(other)), tmp_path / "second", resume_run=True, progress=False)
    assert run_sft(config(place, epochs=1), out, resume_run=True, progress=False).signal is None
    with pytest.raises(ConfigError, match="would delete it first"):
        run_sft(config(place, model=str(out)), out, overwrite=True, progress=False)
    assert (out / "hf" / "config.json").is_file()
    with pytest.raises(ConfigError, match="max_position_embeddings"):
        run_sft(replace(config(place), render=RenderConfig(max_tokens=1000)), tmp_path / "third", progress=False)


def test_micro_batches_change_nothing_but_rounding(place, tmp_path):
    for name, size in (("one", 1), ("four", 4)):
        run_sft(config(place, epochs=1, micro_batch_sequences=size), tmp_path / name, progress=False)
    one, four = (train_lines(tmp_path / name) for name in ("one", "four"))
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in four], rel=1e-4)
    assert [row["targets"] for row in one] == [row["targets"] for row in four]


@pytest.mark.parametrize("targets", [pytest.param(("attention", "ffn"), marks=pytest.mark.slow), ("attention", "ffn", "experts")])
def test_adapters_train_alone_and_resume_to_the_bit(place, tmp_path, monkeypatch, targets):
    tuned = config(place, lora=LoraConfig(rank=4, targets=targets), learning_rate=1e-2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_sft(tuned, whole, progress=False)
    real, begun = sft.train_step, {"n": 0}

    def stopping(*args: Any, **kwargs: Any) -> Any:
        begun["n"] += 1
        if begun["n"] == 3:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(sft, "train_step", stopping)
    assert run_sft(tuned, parts, progress=False).signal == signal.SIGINT
    monkeypatch.setattr(sft, "train_step", real)
    run_sft(tuned, parts, resume_run=True, progress=False)
    lines = train_lines(whole)
    assert [row["loss"] for row in lines] == [row["loss"] for row in train_lines(parts)] and lines[-1]["loss"] < lines[0]["loss"]
    first, second = (peft.Adapter.read(out / "adapter").pairs for out in (whole, parts))
    assert first.keys() == second.keys()
    assert all(torch.equal(a, b) for name in first for a, b in zip(first[name], second[name], strict=True))
    assert not (whole / "hf").exists()


def test_an_fp8_base_is_refused_without_adapters_and_trains_with_them(place, tmp_path):
    base = tmp_path / "fp8"
    hf.export(hf.load(place / "model")[0], place / "tokenizer", base, dtype="fp8")
    with pytest.raises(ConfigError, match="is in FP8; train adapters over it"):
        run_sft(config(place, model=str(base)), tmp_path / "no", progress=False)
    tuned = config(place, model=str(base), lora=LoraConfig(rank=4), weights="fp8", learning_rate=1e-2)
    run_sft(tuned, tmp_path / "out", progress=False)
    lines = train_lines(tmp_path / "out")
    assert lines[-1]["loss"] < lines[0]["loss"]
    with pytest.raises(ConfigError, match="bias_update_speed"):
        run_sft(replace(tuned, bias_update_speed=0.001), tmp_path / "no", progress=False)
