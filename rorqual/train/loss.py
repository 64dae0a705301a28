"""The training loss, each term with its own scale (report equations 17-25; traps 7 and 12 of the specification).

With N the optimiser step's count of valid main targets and T_s those of sequence s:

    main    = sum over valid targets / N
    MTP     = lambda / D sum_k (sum over valid targets of depth k) / N
    balance = sum_s (T_s / N) alpha sum_i f_i P_i, over every MoE layer, MTP included

so micro-batches, packing and layouts only decide where the terms are added up, never what they weigh. For full sequences
these are the report's formulas. A target of MTP depth k at position i is the main target k places on, of the same sample.
Shape letters: b batch, s position, l MoE layer, e expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rorqual.kernels import ops
from rorqual.model.balance import SequenceWeights
from rorqual.model.transformer import CausalLM

NO_TARGET = -100


@dataclass(frozen=True)
class StepLoss:
    """`loss` is what backward takes; `main`, `mtp`, `balance` are its detached terms, mtp unweighted by lambda (the mean over
    depths). `loads` has one row per layer number in `layers`."""

    loss: Float[Tensor, ""]
    main: Float[Tensor, ""]
    mtp: Float[Tensor, ""]
    balance: Float[Tensor, ""]
    loads: Int[Tensor, "l e"] | None
    layers: tuple[int, ...]


def mtp_targets(targets: Int[Tensor, "b s"], segment_ids: Int[Tensor, "b s"] | None, ahead: int) -> Int[Tensor, "b u"]:
    """Targets of MTP depth `ahead` for positions 0..s-1-ahead; none where the sample ends in between."""
    shifted = targets[:, ahead:]
    if segment_ids is None:
        return shifted
    return shifted.masked_fill(segment_ids[:, :-ahead] != segment_ids[:, ahead:], NO_TARGET)


def segment_positions(segment_ids: Int[Tensor, "b s"]) -> Int[Tensor, "b s"]:
    """Place of each token in its own sample: every packed sample begins at position 0, as it does alone."""
    place = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand(segment_ids.shape)
    begins = torch.ones_like(segment_ids, dtype=torch.bool)
    begins[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    return place - torch.where(begins, place, 0).cummax(dim=1).values


def sequence_weights(
    targets: Int[Tensor, "b s"], num_targets: int, segment_ids: Int[Tensor, "b s"] | None, token_mask: Bool[Tensor, "b s"] | None
) -> SequenceWeights:
    """Each sequence's share T_s / N; a sequence is a row of the batch, or a segment of one where samples are isolated."""
    b, s = targets.shape
    row = torch.arange(b, device=targets.device).unsqueeze(1).expand(b, s)
    counted = (targets != NO_TARGET).to(torch.float32) / max(num_targets, 1)
    if segment_ids is None and token_mask is None:
        return SequenceWeights(row, counted.sum(dim=1), True)
    segments = torch.zeros_like(targets) if segment_ids is None else segment_ids
    width = int(segments.max()) + 1 if segments.numel() else 1
    ids = row * max(width, 1) + segments.clamp_min(0)
    weights = counted.new_zeros(b * max(width, 1)).index_add(0, ids.reshape(-1), counted.reshape(-1))
    real = segments >= 0 if token_mask is None else token_mask & (segments >= 0)
    return SequenceWeights(ids.masked_fill(~real, -1), weights, False)


def learned_rows(
    hidden: Float[Tensor, "b s m"], targets: Int[Tensor, "b s"], isolated: bool
) -> tuple[Float[Tensor, "n m"], Int[Tensor, " n"]]:
    """What the output head has to see. Pre-training learns every position; of `isolated` samples a third or more are only read
    (the prompt, the last token of each), add nothing to loss or gradient, and are left out before the largest product of a small model."""
    rows, wanted = hidden.flatten(0, 1), targets.reshape(-1)
    if not isolated:
        return rows, wanted
    learned = (wanted != NO_TARGET).nonzero().squeeze(1)
    return rows.index_select(0, learned), wanted.index_select(0, learned)


def compute_loss(
    model: CausalLM,
    input_ids: Int[Tensor, "b s"],
    targets: Int[Tensor, "b s"],
    *,
    num_targets: int,
    mtp_loss_weight: float,
    aux_loss_alpha: float,
    segment_ids: Int[Tensor, "b s"] | None = None,
    token_mask: Bool[Tensor, "b s"] | None = None,
) -> StepLoss:
    """One micro-batch's share of the optimiser step's loss; shares add up to the whole.

    targets[i] is the token after position i, -100 where there is none; num_targets is N. With mtp_loss_weight 0 the MTP
    modules do not run, which equals a model without them to the bit.
    """
    scale = 1.0 / max(num_targets, 1)
    depth = model.config.num_nextn_predict_layers if mtp_loss_weight else 0
    sequences = sequence_weights(targets, num_targets, segment_ids, token_mask) if aux_loss_alpha else None
    positions = None if segment_ids is None else segment_positions(segment_ids)
    out = model(input_ids, positions=positions, segment_ids=segment_ids, token_mask=token_mask, mtp=depth > 0, sequences=sequences)
    head, isolated = model.head_weight, segment_ids is not None or token_mask is not None
    rows, wanted = learned_rows(out.hidden, targets, isolated)
    loss, main = ops.linear_cross_entropy(rows, head, wanted, scale)
    mtp = torch.zeros_like(main)
    for ahead, hidden in enumerate(out.mtp_hidden, start=1):
        rows, wanted = learned_rows(hidden, mtp_targets(targets, segment_ids, ahead), isolated)
        term, value = ops.linear_cross_entropy(rows, head, wanted, scale * mtp_loss_weight / depth)
        loss, mtp = loss + term, mtp + value / depth
    balance = torch.zeros_like(main)
    if out.balance_loss is not None:
        loss, balance = loss + aux_loss_alpha * out.balance_loss, aux_loss_alpha * out.balance_loss.detach()
    return StepLoss(loss, main * scale, mtp * scale, balance, out.loads, out.layers)


@torch.no_grad()
def evaluate_nll(
    model: CausalLM, input_ids: Int[Tensor, "b s"], targets: Int[Tensor, "b s"]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(nll[b, s] in nats, 0 where there is no target; MTP nll[b, s-1] or None; MTP agreement[b, s-1] or None).

    Agreement is True where the first MTP module's argmax for token i+2 equals the main model's argmax for it, both given
    the true tokens up to i+1: what greedy speculative decoding would accept (report section 5.4.3).
    """
    out = model(input_ids, mtp=model.config.num_nextn_predict_layers > 0)
    logits = model.logits(out.hidden)
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.reshape(-1), ignore_index=NO_TARGET, reduction="none").view_as(
        targets
    )
    if not out.mtp_hidden:
        return nll, None, None
    draft = model.logits(out.mtp_hidden[0])
    draft_nll = torch.nn.functional.cross_entropy(
        draft.flatten(0, 1), targets[:, 1:].reshape(-1), ignore_index=NO_TARGET, reduction="none"
    ).view(targets.shape[0], -1)
    return nll, draft_nll, draft.argmax(-1) == logits[:, 1:].argmax(-1)
