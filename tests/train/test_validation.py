"""Windows, bits per byte against hand-made values, MTP acceptance, and that looking changes nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rorqual.errors import DataError
from rorqual.model.transformer import CausalLM
from rorqual.train import validation
from rorqual.train.validation import evaluate, windows
from tests.tiny import t0
from tests.train.tiny_run import SHAPE


@pytest.mark.parametrize("targets", [1, 5, 8, 9, 12, 16, 17, 31])
@pytest.mark.parametrize(("length", "stride"), [(8, 8), (8, 4), (8, 3), (1, 1)])
def test_every_target_is_scored_once_with_enough_context(targets: int, length: int, stride: int) -> None:
    scored: list[int] = []
    for window in windows(targets, length, stride):
        assert 0 <= window.start and window.start + window.length <= targets and window.length == min(length, targets)
        scored += range(window.start + window.scored_from, window.start + window.length)
        if window.start:
            assert window.scored_from >= length - stride
    assert scored == list(range(targets))


def test_no_tokens_is_an_error() -> None:
    with pytest.raises(DataError, match="no tokens"):
        windows(0, 8, 8)


def a_model() -> CausalLM:
    model = CausalLM(t0(**SHAPE))
    model.init_weights(0)
    return model


def test_uniform_model_costs_log2_vocab_per_token() -> None:
    """With a zero head every token costs log2 256 = 8 bits: 12 tokens for 10 bytes are 9.6 bits per byte, in any window."""
    model = a_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()  # type: ignore[union-attr]
    for sliding in (False, True):
        seen = evaluate(model, np.arange(12), 10, eos_id=1, sequence_length=4, batch_sequences=3, sliding=sliding)
        assert (seen.tokens, seen.bytes) == (12, 10)
        assert (
            seen.loss == pytest.approx(math.log(256)) and seen.bpb == pytest.approx(9.6) and seen.mtp_loss == pytest.approx(math.log(256))
        )
        assert seen.mtp_acceptance == 1.0  # argmax of equal logits is the same id everywhere


def test_sliding_window_gives_what_a_direct_computation_gives() -> None:
    """Length 4, stride 2: target j of the stream sees inputs from its window's start on."""
    model, tokens = a_model(), np.random.default_rng(0).integers(0, 256, 7)
    stream = torch.cat([torch.tensor([1]), torch.from_numpy(tokens)])
    total = 0.0
    for start, first in ((0, 0), (2, 2), (3, 3)):
        logits = model.logits(model(stream[start : start + 4].unsqueeze(0)).hidden)[0]
        nll = torch.nn.functional.cross_entropy(logits, stream[start + 1 : start + 5], reduction="none")
        total += nll[first:].sum().item() if start != 3 else nll[3:].sum().item()
    seen = evaluate(model, tokens, 7, eos_id=1, sequence_length=4, batch_sequences=2, sliding=True)
    assert seen.loss * 7 == pytest.approx(total, rel=1e-5)


def test_batch_size_changes_nothing() -> None:
    model, tokens = a_model(), np.random.default_rng(1).integers(0, 256, 50)
    seen = [evaluate(model, tokens, 50, eos_id=1, sequence_length=8, batch_sequences=n, sliding=True) for n in (1, 3, 16)]
    assert len({round(s.loss, 5) for s in seen}) == 1 and len({s.mtp_acceptance for s in seen}) == 1


def test_acceptance_counts_scored_positions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """One window of 4 and a sliding one: drafts of targets 1-3, then 4-5; agreement on two of the five."""

    def fake(model: Any, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        agree = torch.zeros(inputs.shape[0], 3, dtype=torch.bool)
        agree[0, 0] = agree[1, 0] = agree[1, 2] = True  # the second window's position 0 drafts a target that was scored before
        return torch.zeros_like(targets, dtype=torch.float32), torch.zeros(inputs.shape[0], 3), agree

    monkeypatch.setattr(validation, "evaluate_nll", fake)
    seen = evaluate(a_model(), np.arange(6), 6, eos_id=1, sequence_length=4, batch_sequences=8, sliding=True)
    assert seen.mtp_acceptance == 2 / 5


def test_looking_changes_nothing() -> None:
    model = a_model()
    model.train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(model, np.arange(20), 20, eos_id=1, sequence_length=8, batch_sequences=2)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(p.grad is None for p in model.parameters())
