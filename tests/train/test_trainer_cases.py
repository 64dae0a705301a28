"""Field cases through the whole loop: other sizes from the first step to generated text, ties, a router that stays FP32, real data over its epochs."""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from rorqual.checkpoint import hf
from rorqual.checkpoint.logical import logical_tensors
from rorqual.checkpoint.names import copies, expected
from rorqual.data.config import DataConfig
from rorqual.data.loader import PackedDataset
from rorqual.inference.sampler import SamplingParams
from rorqual.model.transformer import CausalLM
from rorqual.planner.params import count
from rorqual.tokenizer import bpe
from rorqual.train.hyperparams import OptimizerConfig, RunConfig
from rorqual.train.optim import AdamW
from rorqual.train.report import write_report
from rorqual.train.trainer import Batch, StepResult, train, train_step
from tests.data.folders import write_folder
from tests.reference.cache import ContiguousCache
from tests.reference.loop import generate
from tests.tiny import t0
from tests.train.tiny_run import SHAPE, TinyData, digest, tiny_run

EIGHT = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Many steps run here: no shape checks at every call (model tests have them), no debug log of every tensor saved."""
    logging.disable(logging.DEBUG)
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
    logging.disable(logging.NOTSET)


class Last:
    """The model after the last step, and after each step a hash of it; can stop the run."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.steps: dict[int, tuple[str, Any, str]] = {}

    def __call__(self, state: Any, result: StepResult, samples: Any) -> None:
        self.model: CausalLM = state.model
        self.optimized = set(state.optimizer.parameters)
        self.steps[state.position.step] = (result.loss.hex(), samples.documents, digest(state.tensors()))
        if state.position.step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)


def go(run: RunConfig, out: Path, data: Any = None, stop_at: int | None = None, **kwargs: Any) -> Last:
    last = Last(stop_at)
    train(run, out, data=data or TinyData(vocab_size=250), progress=False, ceiling_gflops=50.0, on_step=last, **kwargs)
    return last


# ---------------------------------------------------------------------- F04

SIZES = [
    {"v_head_dim": 12, "num_attention_heads": 3, "kv_lora_rank": 24}, {"q_lora_rank": None, "vocab_size": 259}, {"n_shared_experts": 2}, {"n_shared_experts": 0},
    {"num_hidden_layers": 3, "moe_layer_freq": 2}, {"first_k_dense_replace": 1}, {"num_nextn_predict_layers": 0}, {"num_nextn_predict_layers": 2},
    {"first_k_dense_replace": 1, "num_nextn_predict_layers": 0}, {"n_routed_experts": 0}, {"tie_word_embeddings": True, "num_nextn_predict_layers": 2},
    {"topk_method": "group_limited_greedy", "scoring_func": "softmax", "norm_topk_prob": False, "model_type": "deepseek_v2"},
]  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_any_size_from_the_first_step_to_text(sizes: dict[str, Any], tmp_path: Path) -> None:
    """Trains, is counted, reports, exports with every MTP module (F17), comes back to the bit and generates, cached as the planner says (F04)."""
    run = tiny_run(2, model=sizes, validate_every_steps=100)
    config = run.model
    model = go(run, tmp_path / "run").model
    held = sum(t.numel() for t in logical_tensors(model).values())
    counted = count(config)
    assert counted.total + counted.mtp == held
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (first, *_) = (row for row in rows if row["kind"] == "train")
    # MTP module k (from 0) sees k + 1 tokens of a sequence less
    tokens = [16 - max(0, layer - config.num_hidden_layers + 1) for layer in config.moe_layers]
    assert [sum(load) for load in first["load"]] == [4 * n * config.num_experts_per_tok for n in tokens]
    assert len(first["max_vio"]) == len(tokens)
    page = write_report(tmp_path / "run").read_text()
    assert ("This model has none, so there is no balance to report" in page) == (not config.moe_layers)

    back, report = hf.load(hf.export(model, None, tmp_path / "hf"))
    assert set(report.loaded) == {name for name, _ in expected(config)} | set(copies(config)) and report.config == config
    assert digest(back.state_dict()) == digest(model.state_dict())
    cache = ContiguousCache(config, 1, num_layers=config.num_blocks)
    assert cache.bytes_per_token == 4 * config.num_blocks * (config.kv_lora_rank + 8)
    drafted = generate(back, [[97, 98, 99]], EIGHT, num_drafts=config.num_nextn_predict_layers)
    assert len(drafted.completions[0].token_ids) == 8
    assert drafted.completions[0].token_ids == generate(model, [[97, 98, 99]], EIGHT).completions[0].token_ids


# ---------------------------------------------------------------------- F05


def test_a_tied_head_stays_one_tensor_through_training_resuming_and_export(tmp_path: Path) -> None:
    run = tiny_run(4, model={"tie_word_embeddings": True}, checkpoint_every_steps=100)
    straight = go(run, tmp_path / "straight")
    assert "lm_head.weight" not in straight.optimized and "model.embed_tokens.weight" in straight.optimized
    go(run, tmp_path / "run", stop_at=2)
    resumed = go(run, tmp_path / "run", resume_run=True)
    assert resumed.steps == {step: straight.steps[step] for step in (3, 4)}
    back, _ = hf.load(hf.export(resumed.model, None, tmp_path / "hf"))
    for model in (straight.model, resumed.model, back):
        assert model.head_weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
        assert torch.equal(model.head_weight, straight.model.head_weight)


# ---------------------------------------------------------------------- F07, F15


def test_a_bf16_run_moves_the_bias_in_fp32_by_whole_steps() -> None:
    """Ten steps of 0.001 from 0.5, each the sign of that step's load; BF16 has nothing between 0.5 and 0.50390625."""
    model = CausalLM(t0(**SHAPE))
    model.init_weights(0)
    want = {}
    for layer, bias in model.router_biases():
        bias.fill_(0.5)
        want[layer] = torch.full((4,), 0.5)
    model.to(torch.bfloat16)
    optimizer = AdamW(model.named_parameters(), OptimizerConfig())
    for number in range(10):
        tokens = torch.randint(2, 256, (4, 13), generator=torch.Generator().manual_seed(number))
        result = train_step(model, optimizer, Batch(tokens[:, :-1], tokens[:, 1:]), micro_batch=2, learning_rate=1e-3,
                            bias_update_speed=0.001, mtp_loss_weight=0.3, aux_loss_alpha=1e-4)  # fmt: skip
        assert result.loads is not None and result.loads.dtype == torch.int64
        for layer, load in zip(want, result.loads.tolist(), strict=True):
            mean = sum(load) / len(load)
            want[layer] += torch.tensor([0.001 * ((n < mean) - (n > mean)) for n in load])
    moved = 0
    for layer, bias in model.router_biases():
        assert bias.dtype == torch.float32
        torch.testing.assert_close(bias, want[layer], rtol=0, atol=1e-6)
        moved += int((bias != 0.5).sum())
    assert moved > 4


def test_a_bf16_run_resumes_and_exports_its_bias_to_the_bit(tmp_path: Path) -> None:
    run = tiny_run(4, dtype="bfloat16", device="cpu", checkpoint_every_steps=100)
    straight = go(run, tmp_path / "straight")
    go(run, tmp_path / "run", stop_at=2)
    resumed = go(run, tmp_path / "run", resume_run=True)
    assert resumed.steps == {step: straight.steps[step] for step in (3, 4)}
    back, report = hf.load(hf.export(resumed.model, None, tmp_path / "hf", dtype="bf16"), dtype=torch.bfloat16)
    assert report.notices == []
    for (_, bias), (_, again), (_, exported) in zip(straight.model.router_biases(), resumed.model.router_biases(), back.router_biases(), strict=True):  # fmt: skip
        assert bias.dtype == again.dtype == exported.dtype == torch.float32 and bias.abs().max() > 0
        assert torch.equal(bias, again) and torch.equal(bias, exported)


# ---------------------------------------------------------------------- F13


def test_looking_more_often_changes_no_weight_and_no_count(tmp_path: Path) -> None:
    """Validation and samples after every step: losses, loads, biases and data of a run that never looks (F13)."""
    never = go(tiny_run(4, validate_every_steps=100), tmp_path / "never")
    often = go(tiny_run(4, validate_every_steps=1, sample_every_steps=1, sample_prompts=("ab",), sample_tokens=3), tmp_path / "often")
    assert often.steps == never.steps


def test_the_last_step_is_always_logged(tmp_path: Path) -> None:
    """Totals of a run are read from its last line, whatever the interval."""
    go(tiny_run(5, log_every_steps=2, validate_every_steps=100), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["tokens"]) for row in rows if row["kind"] == "train"] == [(2, 128), (4, 256), (5, 320)]


# ---------------------------------------------------------------------- F31


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of documents, about 200 tokens in all: four rows of 16 tokens a step pass the end of an epoch every third step."""
    root = tmp_path_factory.mktemp("real")
    texts = [f"def f{i}(x):\n    return x + {i * i}\n" for i in range(9)]
    tokenizer = bpe.train(texts * 3, 320, root / "tokenizer")
    tokenizer.save(root / "tokenizer")
    documents = [tokenizer.encode(text) for text in texts]
    held_out = {"code": ([tokenizer.encode("x = 1\n")], b"x = 1\n")}
    return write_folder(root, {"code": [documents[:5], documents[5:]]}, held_out, vocab_size=tokenizer.vocab_size,
                        eos_id=tokenizer.eos_id, tokenizer=tokenizer.fingerprint)  # fmt: skip


def test_resume_across_epochs_of_real_shards(real: Path, tmp_path: Path) -> None:
    """Stopped at every step in turn, epoch borders among them: documents, losses and all state of the run that was not stopped."""
    run = tiny_run(7, model={"vocab_size": 320}, validate_every_steps=100, checkpoint_every_steps=100)

    def data() -> PackedDataset:
        return PackedDataset(real, DataConfig(fim_rate=0.3, seed=5), 16)

    straight = go(run, tmp_path / "straight", data())
    epochs = [{piece.epoch for row in documents for piece in row} for _, documents, _ in straight.steps.values()]
    assert max(max(seen) for seen in epochs) >= 2 and any(len(seen) > 1 for seen in epochs)
    steps: dict[int, Any] = {}
    for stop in range(1, 8):
        part = go(run, tmp_path / "run", data(), stop_at=stop, resume_run=stop > 1)
        assert list(part.steps) == [stop]
        steps.update(part.steps)
    assert steps == straight.steps
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 8))


# ---------------------------------------------------------------------- F16


def test_the_trunk_s_gradient_does_not_grow_with_the_number_of_tokens() -> None:
    """The same rows once and three times: one loss, one gradient, at any lambda."""
    model = CausalLM(t0(**SHAPE))
    model.init_weights(0)
    tokens = torch.randint(2, 256, (2, 9), generator=torch.Generator().manual_seed(1))
    seen: dict[tuple[int, float], tuple[float, Tensor]] = {}
    for times, weight in itertools.product((1, 3), (0.0, 0.3)):
        optimizer = AdamW(model.named_parameters(), OptimizerConfig())
        rows = tokens.repeat(times, 1)
        grads: dict[str, Tensor] = {}
        optimizer.step = lambda *_, o=optimizer, g=grads: g.update({n: t.clone() for n, t in o.gradients().items()})  # type: ignore[method-assign]
        result = train_step(model, optimizer, Batch(rows[:, :-1], rows[:, 1:]), micro_batch=2, learning_rate=0.0,
                            bias_update_speed=0.0, mtp_loss_weight=weight, aux_loss_alpha=1e-4)  # fmt: skip
        seen[times, weight] = result.loss, grads["model.layers.0.self_attn.o_proj.weight"]
    for weight in (0.0, 0.3):
        assert seen[3, weight][0] == pytest.approx(seen[1, weight][0], rel=1e-5)
        torch.testing.assert_close(seen[3, weight][1], seen[1, weight][1], rtol=1e-4, atol=1e-7)
    assert not torch.allclose(seen[1, 0.3][1], seen[1, 0.0][1], rtol=1e-2)
