"""The optimiser step: totals, counts, accumulation, skipped and empty steps (field cases F13-F16, F30)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from rorqual.model.transformer import CausalLM
from rorqual.parallel import recompute
from rorqual.train import trainer
from rorqual.train.hyperparams import OptimizerConfig
from rorqual.train.loss import NO_TARGET, StepLoss
from rorqual.train.optim import AdamW
from rorqual.train.trainer import Batch, StepResult, train_step
from tests.tiny import t0
from tests.train.tiny_run import SHAPE, digest, tiny_run


def a_model(seed: int = 0, **changes: Any) -> tuple[CausalLM, AdamW]:
    model = CausalLM(t0(**{"initializer_range": 0.02, **changes}))
    model.init_weights(seed)
    return model, AdamW(model.named_parameters(), OptimizerConfig())


def a_batch(rows: int = 4, length: int = 12, seed: int = 5) -> Batch:
    tokens = torch.randint(2, 256, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    return Batch(tokens[:, :-1].clone(), tokens[:, 1:].clone())


def step(model: CausalLM, optimizer: AdamW, batch: Batch, micro: int = 2, **changes: Any) -> StepResult:
    fields = {"learning_rate": 1e-3, "bias_update_speed": 0.1, "mtp_loss_weight": 0.3, "aux_loss_alpha": 1e-4}
    return train_step(model, optimizer, batch, micro_batch=micro, **{**fields, **changes})


def biases(model: CausalLM) -> Tensor:
    return torch.stack([bias for _, bias in model.router_biases()])


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Hundreds of steps run here: no shape checks at every call (model tests have them), no debug log of every tensor saved."""
    logging.disable(logging.DEBUG)
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
    logging.disable(logging.NOTSET)


# ---------------------------------------------------------------------- one optimiser step


def test_bias_moves_once_by_the_whole_step_s_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batch loads [3, 1] and [1, 7]: total [4, 8], mean 6, so the bias becomes [+0.1, -0.1] (F13)."""
    model, optimizer = a_model(
        n_routed_experts=2, n_group=1, topk_group=1, num_experts_per_tok=1, num_hidden_layers=2, num_nextn_predict_layers=0
    )
    loads = iter([torch.tensor([[3, 1]]), torch.tensor([[1, 7]])])
    zero = torch.zeros(())

    def loss(model: CausalLM, *_: Any, **__: Any) -> StepLoss:
        return StepLoss(model.head_weight.sum() * 0.0, zero, zero, zero, next(loads), (1,))

    monkeypatch.setattr(trainer, "compute_loss", loss)
    result = step(model, optimizer, a_batch(rows=4), micro=2)
    assert result.loads is not None and result.loads.tolist() == [[4, 8]]
    assert biases(model).tolist() == [[pytest.approx(0.1), pytest.approx(-0.1)]]


@pytest.mark.parametrize("micro", [1, 2, 3, 4])
def test_accumulation_changes_nothing(micro: int) -> None:
    """Loads and biases are identical whatever the micro-batch, parameters equal to rounding; evaluation in between moves nothing."""
    whole, parts = a_model(), a_model()
    for number in range(3):
        batch = a_batch(seed=number)
        one, many = step(*whole, batch, micro=4), step(*parts, batch, micro=micro)
        assert one.loads is not None and many.loads is not None
        assert one.loads.dtype == torch.int64 and torch.equal(one.loads, many.loads)
        # every real token goes to top-2 experts; the MTP module sees one token less per sequence
        assert one.loads.sum(1).tolist() == [4 * 12 * 2, 4 * 12 * 2, 4 * 11 * 2]
        assert one.loss == pytest.approx(many.loss, rel=1e-5) and one.mtp == pytest.approx(many.mtp, rel=1e-5)
        before = digest(parts[0].state_dict())
        with torch.no_grad():
            parts[0](batch.input_ids, mtp=True)
        assert digest(parts[0].state_dict()) == before
    assert torch.equal(biases(whole[0]), biases(parts[0]))
    for (name, a), (_, b) in zip(whole[0].named_parameters(), parts[0].named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_recomputation_changes_nothing() -> None:
    """Loads, biases and weights with every recompute policy on, over two micro-batches, to the bit (F13)."""
    plain, again = a_model(), a_model()
    recompute.apply(again[0], ("norms", "mla_up", "swiglu"))
    for number in range(2):
        one, two = step(*plain, a_batch(seed=number)), step(*again, a_batch(seed=number))
        assert one.loads is not None and two.loads is not None and torch.equal(one.loads, two.loads)
        assert one.loss == two.loss
    assert digest(plain[0].state_dict()) == digest(again[0].state_dict())


def test_padding_is_not_counted() -> None:
    """Ten padding tokens more: loads, bias and loss of the unpadded step (F13)."""
    plain, padded = a_model(), a_model()
    batch = a_batch(rows=2, length=6)
    pad = torch.zeros(2, 5, dtype=torch.int64)
    mask = torch.cat([torch.ones(2, 6), torch.zeros(2, 5)], 1).bool()
    wide = Batch(torch.cat([batch.input_ids, pad], 1), torch.cat([batch.targets, pad + NO_TARGET], 1), token_mask=mask)
    one, two = step(*plain, batch), step(*padded, wide)
    assert one.loads is not None and two.loads is not None and torch.equal(one.loads, two.loads)
    assert torch.equal(biases(plain[0]), biases(padded[0]))
    assert one.num_targets == two.num_targets == 12 and one.loss == pytest.approx(two.loss, rel=1e-5)


@pytest.mark.parametrize("rows", [1, 2])
def test_starved_experts(rows: int) -> None:
    """Bias +10 on two experts of one group starves the rest: all finite, their gradients exactly zero, treated alike (F14)."""
    model, optimizer = a_model()
    for _, bias in model.router_biases():
        bias[:2] = 10.0
    dirty = [torch.full((8, 64, 64), float("nan")) for _ in range(20)]
    del dirty
    seen: dict[str, Tensor] = {}
    original = optimizer.step
    optimizer.step = lambda *a: (seen.update({n: g.clone() for n, g in optimizer.gradients().items()}), original(*a))[1]  # type: ignore[method-assign]
    for number in range(3):
        result = step(model, optimizer, a_batch(rows=rows, length=1 if rows == 1 else 2, seed=number), bias_update_speed=0.0)
        assert result.outcome == "updated"
    starved = seen["model.layers.1.mlp.experts.gate_up_proj.weight"][2:]
    assert torch.count_nonzero(starved) == 0
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_bias_is_out_of_the_optimiser_s_reach() -> None:
    """A hundred steps with weight decay 0.1 at gamma 0 leave FP32 biases to the bit, also in a BF16 model (F15)."""
    model, _ = a_model(**SHAPE)
    start = torch.randn(4, generator=torch.Generator().manual_seed(1))
    for _, bias in model.router_biases():
        bias.copy_(start)
    model.to(torch.bfloat16)
    optimizer = AdamW(model.named_parameters(), OptimizerConfig(weight_decay=0.1))
    assert not any("bias" in name for name in optimizer.parameters)
    for number in range(100):
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.01 * number)
        optimizer.accumulate()
        optimizer.step(1e-3, optimizer.gradient_norm())
        optimizer.zero_grad()
    assert step(model, optimizer, a_batch(rows=2, length=4), bias_update_speed=0.0).outcome == "updated"
    for _, bias in model.router_biases():
        assert bias.dtype == torch.float32 and torch.equal(bias, start)


def forced(hidden: Tensor, _weight: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Every token has log-probability -1."""
    count = (targets != NO_TARGET).sum().float()
    return hidden.sum() * 0.0 + count * scale, count


@pytest.mark.parametrize(("depth", "mtp", "total"), [(1, 0.875, 1.2625), (2, (7 / 8 + 6 / 8) / 2, 1.24375)])
def test_step_totals(monkeypatch: pytest.MonkeyPatch, depth: int, mtp: float, total: float) -> None:
    """T = 8, lambda 0.3 (F16)."""
    monkeypatch.setattr("rorqual.kernels.ops.linear_cross_entropy", forced)
    model, optimizer = a_model(num_nextn_predict_layers=depth)
    result = step(model, optimizer, a_batch(rows=1, length=8), aux_loss_alpha=0.0)
    assert (result.main, result.mtp, result.loss) == (1.0, pytest.approx(mtp), pytest.approx(total))


def test_step_totals_of_unequal_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches with 8 and 2 targets: N = 10, MTP (7 + 1) / 10, whatever the split (F16)."""
    monkeypatch.setattr("rorqual.kernels.ops.linear_cross_entropy", forced)
    batch = a_batch(rows=2, length=8)
    batch.targets[1, 2:] = NO_TARGET
    for micro in (1, 2):
        result = step(*a_model(), batch, micro=micro, aux_loss_alpha=0.0)
        assert (result.num_targets, result.main) == (10, pytest.approx(1.0))
        assert result.mtp == pytest.approx(0.8) and result.loss == pytest.approx(1.24)


def test_no_targets_no_update() -> None:
    """All labels masked: nothing changes, and the step says so; half of the micro-batches masked: the other half counts (F30)."""
    model, optimizer = a_model()
    batch = a_batch()
    before = digest(model.state_dict())
    masked = Batch(batch.input_ids, torch.full_like(batch.targets, NO_TARGET))
    result = step(model, optimizer, masked)
    assert (result.outcome, result.num_targets, result.loss) == ("no targets", 0, 0.0)
    assert digest(model.state_dict()) == before and optimizer.updates == 0
    batch.targets[2:] = NO_TARGET
    result = step(model, optimizer, batch)
    assert result.outcome == "updated" and result.num_targets == 24 and result.loss > 0


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_non_finite_step_touches_nothing(monkeypatch: pytest.MonkeyPatch, poison: str) -> None:
    model, optimizer = a_model()
    step(model, optimizer, a_batch())
    before, moments = digest(model.state_dict()), digest(optimizer.state())
    real = trainer.compute_loss

    def poisoned(*args: Any, **kwargs: Any) -> StepLoss:
        out = real(*args, **kwargs)
        factor = float("nan") if poison == "loss" else 1.0
        if poison == "gradient":
            out.loss.register_hook(lambda g: g * float("inf"))
        return StepLoss(out.loss * factor, out.main * factor, out.mtp, out.balance, out.loads, out.layers)

    monkeypatch.setattr(trainer, "compute_loss", poisoned)
    assert step(model, optimizer, a_batch(seed=9)).outcome == "non-finite"
    assert digest(model.state_dict()) == before and digest(optimizer.state()) == moments and optimizer.updates == 1
    assert all(p.grad is None for p in model.parameters())


def test_interrupted_between_micro_batches() -> None:
    model, optimizer = a_model()
    before = digest(model.state_dict())
    answers = iter([False, True])
    assert step(model, optimizer, a_batch(), interrupted=lambda: next(answers)).outcome == "interrupted"
    assert digest(model.state_dict()) == before and all(p.grad is None for p in model.parameters())


def test_bf16_step_follows_fp32() -> None:
    """The BF16 path (FP32 masters, router, head) on the CPU: the loss falls alongside the FP32 one."""
    run = tiny_run()
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        state = trainer.build(run, torch.device("cpu"), dtype)
        assert state.model.head_weight.dtype == state.model.model.layers[1].mlp.gate.weight.dtype == torch.float32
        assert state.model.model.embed_tokens.weight.dtype == dtype
        assert all(t.dtype == torch.float32 for t in state.weights().values())
        losses[dtype] = [step(state.model, state.optimizer, a_batch(seed=0), learning_rate=3e-3).loss for _ in range(8)]
    assert losses[torch.bfloat16][-1] < losses[torch.bfloat16][0] - 0.5
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=2e-2)


@pytest.mark.gpu
def test_gpu_step_follows_the_cpu() -> None:
    run = tiny_run()
    losses = {}
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        state = trainer.build(run, torch.device(device), dtype)
        losses[device] = [step(state.model, state.optimizer, a_batch(seed=0), learning_rate=3e-3).loss for _ in range(8)]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=3e-2)
