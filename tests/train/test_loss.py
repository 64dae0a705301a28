"""Loss terms against hand-computed values, and what must not change them: accumulation, packing, padding, order."""

from __future__ import annotations

import math

import pytest
import torch

from rorqual.kernels import ops
from rorqual.model.transformer import CausalLM
from rorqual.train.loss import NO_TARGET, compute_loss, evaluate_nll, mtp_targets, segment_positions, sequence_weights
from tests.tiny import t0


def made(**changes: object) -> CausalLM:
    model = CausalLM(t0(initializer_range=0.1, **changes))
    model.init_weights(0)
    return model


def batch(rows: int = 2, length: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, 256, (rows, length + 1), generator=torch.Generator().manual_seed(5))
    return ids[:, :-1], ids[:, 1:]


def gradients(model: CausalLM, *parts: dict[str, object]) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    total = 0.0
    for part in parts:
        loss = compute_loss(model, mtp_loss_weight=0.3, aux_loss_alpha=0.1, **part).loss  # type: ignore[arg-type]
        loss.backward()
        total += float(loss.detach())
    return total, torch.cat([p.grad.reshape(-1) if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()])


@pytest.mark.parametrize(("depth", "extra"), [(1, 0.2625), (2, 0.24375)])
def test_denominators_of_the_report(depth: int, extra: float) -> None:
    """Every log-probability -1, T = 8: MTP 7/8 of a main loss of 1; at depth 2 the mean of 7/8 and 6/8, times 0.3."""
    model = made(num_nextn_predict_layers=depth)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every log-probability is -log 256
    ids, targets = batch(1)
    out = compute_loss(model, ids, targets, num_targets=8, mtp_loss_weight=0.3, aux_loss_alpha=0.0)
    unit = math.log(256)
    assert float(out.main) / unit == pytest.approx(1.0)
    assert float(out.mtp) / unit == pytest.approx(extra / 0.3)
    assert float(out.loss.detach()) / unit == pytest.approx(1.0 + extra)


def test_two_micro_batches_of_unequal_length() -> None:
    """T = 8 and T = 2 share N = 10: (8 + 2) / 10, MTP (7 + 1) / 10."""
    model = made()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    ids, targets = batch(1)
    parts = [compute_loss(model, ids[:, :n], targets[:, :n], num_targets=10, mtp_loss_weight=0.3, aux_loss_alpha=0.0) for n in (8, 2)]
    unit = math.log(256)
    assert sum(float(p.main) for p in parts) / unit == pytest.approx(1.0)
    assert sum(float(p.mtp) for p in parts) / unit == pytest.approx(0.8)


def test_numerator_and_denominator_share_one_mask() -> None:
    model = made()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    ids, targets = batch(1)
    targets = targets.clone()
    targets[0, :3] = NO_TARGET
    out = compute_loss(model, ids, targets, num_targets=5, mtp_loss_weight=0.3, aux_loss_alpha=0.0)
    assert float(out.main) / math.log(256) == pytest.approx(1.0)
    assert float(out.mtp) / math.log(256) == pytest.approx(1.0)  # targets 3..7 of the MTP stream are the same five tokens


def test_accumulation_changes_nothing() -> None:
    model = made()
    ids, targets = batch(4)
    whole = gradients(model, {"input_ids": ids, "targets": targets, "num_targets": 32})
    parts = gradients(model, *({"input_ids": ids[i : i + 1], "targets": targets[i : i + 1], "num_targets": 32} for i in range(4)))
    assert whole[0] == pytest.approx(parts[0], rel=1e-6)
    torch.testing.assert_close(whole[1], parts[1], atol=1e-6, rtol=1e-4)


def test_packing_with_isolation_equals_samples_alone() -> None:
    """A of 5 and B of 4 tokens in one row with pad: 3 + 4... label terms, loss and gradients as two separate sequences, balance included."""
    model = made()
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randint(0, 256, (1, 5), generator=generator), torch.randint(0, 256, (1, 4), generator=generator)
    none = torch.full((1, 1), NO_TARGET)
    packed = {
        "input_ids": torch.cat([a, b, torch.zeros(1, 3, dtype=torch.int64)], dim=1),
        "targets": torch.cat([a[:, 1:], none, b[:, 1:], none, none.expand(1, 3)], dim=1),
        "segment_ids": torch.tensor([[0] * 5 + [1] * 4 + [-1] * 3]),
        "num_targets": 7,
    }
    assert int((packed["targets"] != NO_TARGET).sum()) == 4 + 3
    alone = [{"input_ids": x, "targets": torch.cat([x[:, 1:], none], dim=1), "num_targets": 7} for x in (a, b)]
    together, apart = gradients(model, packed), gradients(model, *alone)
    assert together[0] == pytest.approx(apart[0], rel=1e-5)
    torch.testing.assert_close(together[1], apart[1], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("experts", [0, 8])
def test_a_sample_does_not_see_its_neighbour(experts: int) -> None:
    """Equal to the bit without routed experts. With them, a changed neighbour may move another row in or out of an expert's
    GEMM, whose library kernel may then round the sample's rows differently."""
    model = made(n_routed_experts=experts)
    ids = torch.randint(0, 256, (1, 9), generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[0] * 5 + [1] * 4])
    changed = ids.clone()
    changed[0, 2] = (changed[0, 2] + 1) % 256
    isolated = [model(x, segment_ids=segments, mtp=True) for x in (ids, changed)]
    for a, b in ((isolated[0].hidden, isolated[1].hidden), (isolated[0].mtp_hidden[0], isolated[1].mtp_hidden[0])):
        torch.testing.assert_close(a[:, 5:], b[:, 5:], **({} if experts else {"atol": 0.0, "rtol": 0.0}))
    packed = [model(x) for x in (ids, changed)]
    assert (packed[0].hidden[:, 5:] - packed[1].hidden[:, 5:]).abs().max() > 1e-3


def test_sequence_weights_sum_to_one() -> None:
    targets = torch.tensor([[1, 2, NO_TARGET, 3], [4, NO_TARGET, NO_TARGET, NO_TARGET]])
    plain = sequence_weights(targets, 4, None, None)
    assert plain.weights.tolist() == [0.75, 0.25] and plain.rows
    segments = torch.tensor([[0, 0, 0, 1], [0, 0, -1, -1]])
    isolated = sequence_weights(targets, 4, segments, None)
    assert isolated.weights.tolist() == [0.5, 0.25, 0.25, 0.0]
    assert isolated.ids.tolist() == [[0, 0, 0, 1], [2, 2, -1, -1]]


def test_balance_term_is_weighted_by_alpha_alone() -> None:
    model, (ids, targets) = made(), batch()
    losses = [compute_loss(model, ids, targets, num_targets=16, mtp_loss_weight=0.3, aux_loss_alpha=alpha) for alpha in (0.0, 0.1, 0.2)]
    assert float(losses[2].balance) == pytest.approx(2 * float(losses[1].balance))
    assert float(losses[1].loss.detach()) - float(losses[0].loss.detach()) == pytest.approx(float(losses[1].balance), abs=1e-5)
    assert float(losses[1].balance) / 0.1 == pytest.approx(3.0, rel=0.3)  # about one per MoE layer


def test_lambda_zero_is_mtp_off_to_the_bit() -> None:
    model, (ids, targets) = made(), batch()
    without = made(num_nextn_predict_layers=0)
    without.load_state_dict({k: v for k, v in model.state_dict().items() if "layers.3." not in k})
    losses = []
    for m in (model, without):
        m.zero_grad()
        loss = compute_loss(m, ids, targets, num_targets=16, mtp_loss_weight=0.0, aux_loss_alpha=1e-4)
        loss.loss.backward()
        losses.append((loss.loss, m.model.embed_tokens.weight.grad))
    assert torch.equal(losses[0][0], losses[1][0]) and torch.equal(losses[0][1], losses[1][1])


def test_gradient_of_the_trunk_scales_with_lambda() -> None:
    model, (ids, targets) = made(), batch()
    grads = []
    for weight in (0.0, 0.3, 0.6):
        model.zero_grad()
        compute_loss(model, ids, targets, num_targets=16, mtp_loss_weight=weight, aux_loss_alpha=0.0).loss.backward()
        grads.append(model.model.layers[0].self_attn.o_proj.weight.grad.clone())
    torch.testing.assert_close(grads[2] - grads[0], 2 * (grads[1] - grads[0]), atol=1e-6, rtol=1e-3)


def test_no_targets_give_zero_and_no_nan() -> None:
    model, (ids, targets) = made(), batch()
    loss, grad = gradients(model, {"input_ids": ids, "targets": torch.full_like(targets, NO_TARGET), "num_targets": 0})
    assert loss == 0.0 and grad.abs().max() == 0


def test_what_is_only_read_does_not_reach_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 places of which 5 are learned: the head sees no more rows than that, loss and gradients are those of all rows with a mask."""
    model, (ids, targets) = made(), batch(1)
    targets = targets.clone()
    targets[0, [0, 1, 4]] = NO_TARGET
    part: dict[str, object] = {"input_ids": ids, "targets": targets, "num_targets": 5}
    seen: list[int] = []
    real = ops.linear_cross_entropy
    monkeypatch.setattr(ops, "linear_cross_entropy", lambda hidden, *rest: (seen.append(len(hidden)), real(hidden, *rest))[1])
    gradients(model, {**part, "segment_ids": torch.tensor([[0] * 7 + [1]])})
    plain, alone = gradients(model, part), gradients(model, {**part, "segment_ids": torch.zeros_like(ids)})
    assert seen == [5, 4, 8, 7, 5, 5]  # the head of main, then MTP's: a target over a border is none
    assert alone[0] == pytest.approx(plain[0], rel=1e-6)
    torch.testing.assert_close(alone[1], plain[1], atol=1e-6, rtol=1e-4)
    loss, grad = gradients(model, {**part, "targets": torch.full_like(targets, NO_TARGET), "segment_ids": torch.zeros_like(ids)})
    assert loss == 0.0 and grad.abs().max() == 0 and all(p.grad is not None for p in model.parameters())


def test_mtp_targets_stop_at_the_border() -> None:
    targets = torch.tensor([[1, 2, 3, 4, 5]])
    assert mtp_targets(targets, None, 1).tolist() == [[2, 3, 4, 5]]
    assert mtp_targets(targets, torch.tensor([[0, 0, 0, 1, 1]]), 1).tolist() == [[2, 3, NO_TARGET, 5]]


def test_evaluation_scores_each_target_and_the_draft() -> None:
    model, (ids, targets) = made(), batch()
    nll, draft_nll, agree = evaluate_nll(model, ids, targets)
    logits = model.logits(model(ids).hidden)
    torch.testing.assert_close(nll, -logits.log_softmax(-1).gather(2, targets.unsqueeze(2)).squeeze(2), atol=1e-5, rtol=1e-5)
    draft = model.logits(model(ids, mtp=True).mtp_hidden[0])
    assert torch.equal(agree, draft.argmax(-1) == logits.argmax(-1)[:, 1:])
    torch.testing.assert_close(draft_nll, -draft.log_softmax(-1).gather(2, targets[:, 1:].unsqueeze(2)).squeeze(2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["chosen", "reference"])
def test_an_empty_micro_batch_gives_zero_and_gradients_of_zero(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No rows at all: every parameter has a gradient, all of them exactly zero, on compiled kernels and without (F14)."""
    if backend == "reference":
        monkeypatch.setattr("rorqual.kernels.native.usable", lambda *_: False)
    model, none = made(), torch.zeros(0, 6, dtype=torch.int64)
    loss, grad = gradients(model, {"input_ids": none, "targets": none, "num_targets": 6})
    assert loss == 0.0 and grad.abs().max() == 0 and all(p.grad is not None for p in model.parameters())


def test_positions_begin_anew_in_every_segment() -> None:
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, -1, -1], [4, 4, 4, 4, 4, 4, 4, 4]])
    assert segment_positions(segments).tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]]
