"""Validation loss, bits per byte and MTP acceptance on a held-out token stream (report sections 4.2 and 5.4.3).

    bits per byte = sum of -log2 p(token) over the whole stream / bytes of its text

The stream is every validation document followed by its end token, whose cost counts while it adds no byte: the figure is an
upper bound on what a compressor driven by the model needs. The first token is predicted from an end token. During training
windows do not overlap; the final validation slides them by half their length, so that all but the first window's tokens
have at least half a window of context. Nothing is drawn at random, no count or bias is touched, no gradient is made.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rorqual.errors import DataError
from rorqual.model.transformer import CausalLM
from rorqual.train.loss import NO_TARGET, evaluate_nll


@dataclass(frozen=True)
class Evaluation:
    """Mean nats per token of the main model and of the first MTP module, bits per byte, share of accepted MTP drafts, seconds."""

    loss: float
    bpb: float
    mtp_loss: float | None
    mtp_acceptance: float | None
    tokens: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Window:
    """Inputs stream[start : start + length]; targets before `scored_from` belong to an earlier window."""

    start: int
    length: int
    scored_from: int


def windows(num_targets: int, length: int, stride: int) -> list[Window]:
    """Windows in which each of `num_targets` targets is scored exactly once; the last one is moved back to have full length."""
    if num_targets < 1:
        raise DataError("the validation set has no tokens; build the data with a larger --validation-rate or more documents")
    length = min(length, num_targets)
    out, scored = [Window(0, length, 0)], length
    while scored < num_targets:
        start = min(out[-1].start + stride, num_targets - length)
        out.append(Window(start, length, scored - start))
        scored = start + length
    return out


def evaluate(
    model: CausalLM,
    tokens: Any,
    num_bytes: int,
    *,
    eos_id: int,
    sequence_length: int,
    batch_sequences: int,
    sliding: bool = False,
) -> Evaluation:
    """Scores a 1-D integer array of tokens that stands for `num_bytes` bytes of text."""
    began = time.monotonic()
    device = model.head_weight.device
    stream = torch.cat([torch.tensor([eos_id]), torch.as_tensor(tokens).to(torch.int64)])
    todo = windows(stream.numel() - 1, sequence_length, sequence_length // 2 if sliding and sequence_length > 1 else sequence_length)
    nll = mtp_nll = 0.0
    mtp_scored = agreed = 0
    was_training = model.training
    model.eval()
    try:
        for first in range(0, len(todo), batch_sequences):
            rows = todo[first : first + batch_sequences]
            inputs = torch.stack([stream[w.start : w.start + w.length] for w in rows]).to(device)
            targets = torch.stack([_targets(stream, w) for w in rows]).to(device)
            losses, draft_losses, agree = evaluate_nll(model, inputs, targets)
            nll += losses.double().sum().item()
            if draft_losses is not None and agree is not None:
                scored = targets[:, 1:] != NO_TARGET
                mtp_nll += draft_losses.double().sum().item()
                agreed += int((agree & scored).sum())
                mtp_scored += int(scored.sum())
    finally:
        model.train(was_training)
    count = stream.numel() - 1
    return Evaluation(
        loss=nll / count,
        bpb=nll / math.log(2) / num_bytes,
        mtp_loss=mtp_nll / mtp_scored if mtp_scored else None,
        mtp_acceptance=agreed / mtp_scored if mtp_scored else None,
        tokens=count,
        bytes=num_bytes,
        seconds=time.monotonic() - began,
    )


def _targets(stream: Tensor, window: Window) -> Tensor:
    targets = stream[window.start + 1 : window.start + window.length + 1].clone()
    targets[: window.scored_from] = NO_TARGET
    return targets
