"""One optimiser step: whatever the micro-batches, ratio 1 to the bit before the first update, nothing moves without signal."""

import copy
import math

import pytest
import torch

from rorqual.posttrain import presets, update
from tests.inference.models import build
from tests.posttrain.scenes import config, groups, trainee


def _gradients(settings, sampled, reference=None):
    """Gradients just before the optimiser step, and the figures."""
    subject = trainee(build(), settings, reference)
    kept = {}
    step = subject.optimizer.step

    def look(rate, norm):
        kept.update({name: g.clone() for name, g in subject.optimizer.gradients().items()})
        step(rate, norm)

    subject.optimizer.step = look
    return kept, update.update(subject, sampled, settings, 1e-2)


FORMS = {
    "deepseekmath": presets.Objective(kl_beta=0.04), "v3": presets.Objective(ratio="sequence", kl_beta=0.04),
    "dapo": presets.Objective(clip_high=0.28, aggregation="token-mean"), "dr-grpo": presets.Objective(scale="none", aggregation="constant"),
    "gspo": presets.Objective(ratio="sequence-mean"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradient_do_not_depend_on_micro_batches(form):
    """Also with an answer that was not judged and a group without signal."""
    settings = config(objective=FORMS[form])
    sampled = groups(build(), settings, ((1.0, 0.0, math.nan, 1.0), (0.0, 0.0, 1.0, 0.0), (1.0, 1.0, 1.0, 1.0)))
    reference = build(seed=4)
    whole, one = _gradients(settings, sampled, reference)
    parts, other = _gradients(config(objective=FORMS[form], micro_batch_tokens=30), sampled, reference)
    assert one.loss == pytest.approx(other.loss, abs=1e-6) and one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)
    assert one.gradient_norm > 0 and whole.keys() == parts.keys()
    for name, gradient in whole.items():
        assert torch.allclose(gradient, parts[name], atol=1e-6, rtol=1e-3), name


def test_the_first_update_has_ratio_one_to_the_bit_and_a_gap_below_1e_5():
    """Field case F36: with replay no expert differs, and the gradient reaches the router."""
    settings = config()
    model = build()
    sampled = groups(model, settings)
    subject = trainee(model, settings)
    before = model.model.layers[1].mlp.gate.weight.detach().clone()
    bias = model.model.layers[1].mlp.gate.e_score_correction_bias.clone()
    figures = update.update(subject, sampled, settings, 1e-3)
    assert figures.outcome == "updated" and figures.max_ratio == 1.0 and figures.clipped == 0
    record = figures.record()
    assert record["logprob_gap_max"] < 1e-5 and record["routing_flip_rate"] == 0.0
    assert not torch.equal(before, model.model.layers[1].mlp.gate.weight)
    assert torch.equal(bias, model.model.layers[1].mlp.gate.e_score_correction_bias)


@pytest.mark.parametrize("replay", ["r3", "r2"])
def test_old_log_probabilities_give_ratio_one_then_move(replay):
    settings = config(routing_replay=replay, micro_batch_tokens=60)
    subject = trainee()
    sampled = update.old_logprobs(subject, groups(subject.model, settings), settings)
    first = update.update(subject, sampled, settings, 1e-3)
    second = update.update(subject, sampled, settings, 1e-3)
    assert first.max_ratio == 1.0 and first.clipped == 0
    assert second.max_ratio > 1.0 and second.flips >= 0


def test_without_replay_experts_may_differ_and_nothing_is_compared():
    settings = config(routing_replay="off")
    subject = trainee()
    figures = update.update(subject, groups(subject.model, settings), settings, 1e-3)
    assert figures.outcome == "updated" and figures.record()["routing_flip_rate"] is None


def test_groups_without_signal_leave_every_bit():
    settings = config(objective=presets.Objective(kl_beta=0.1))
    subject = trainee(settings=settings, reference=build(seed=4))
    sampled = groups(subject.model, settings, ((1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 0.0, 0.0)))
    before = copy.deepcopy(subject.model.state_dict())
    figures = update.update(subject, sampled, settings, 1e-2)
    assert figures.outcome == "no signal" and subject.optimizer.updates == 0
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())
    assert update.update(subject, [], settings, 1e-2).outcome == "no signal"


def test_answers_not_judged_and_cut_ones_take_no_part():
    """A NaN reward is left out of the mean over answers; with drop_cut so are cut answers, and all cut is no NaN (F35)."""
    settings = config()
    sampled = groups(build(), settings, ((1.0, 0.0, math.nan, 1.0),))
    _, figures = _gradients(settings, sampled)
    assert figures.answers == 3
    dropping = config(objective=presets.Objective(drop_cut=True))
    assert all(answer.cut for group in sampled for answer in group.answers)
    assert _gradients(dropping, sampled)[1].outcome == "no signal"


def test_non_finite_gradients_change_nothing():
    settings = config()
    subject = trainee(settings=settings)
    sampled = groups(subject.model, settings)
    with torch.no_grad():
        subject.model.model.norm.weight[0] = math.inf
    before = copy.deepcopy(subject.model.state_dict())
    assert update.update(subject, sampled, settings, 1e-2).outcome == "non-finite"
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())


def test_a_better_answer_becomes_likelier():
    settings = config()
    subject = trainee(settings=settings)
    sampled = groups(subject.model, settings, ((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0)))
    rows = [answer.row for group in sampled for answer in group.answers]
    good = torch.tensor([group.rewards[n] > 0 for group in sampled for n in range(4)])
    with torch.no_grad():
        before = update.policy.score(subject.model, rows)
        for _ in range(5):
            with torch.enable_grad():
                update.update(subject, sampled, settings, 1e-3)
        after = update.policy.score(subject.model, rows)
    gain = torch.zeros(8).index_add(0, before.answer, after.logp - before.logp)
    assert float(gain[good].mean()) > 0 > float(gain[~good].mean())


def test_router_bias_moves_only_when_asked():
    settings = config(bias_update_speed=0.001)
    subject = trainee(settings=settings)
    before = subject.model.model.layers[1].mlp.gate.e_score_correction_bias.clone()
    update.update(subject, groups(subject.model, settings), settings, 1e-3)
    moved = subject.model.model.layers[1].mlp.gate.e_score_correction_bias - before
    assert float(moved.abs().max()) == pytest.approx(0.001)


def test_filtered_sampling_is_scored_over_the_kept_sets():
    """With top-k the ratio before the first update is still 1, because both passes normalise over the same sets."""
    settings = config(top_k=5, temperature=0.8)
    subject = trainee(settings=settings)
    sampled = update.prepare(subject, groups(subject.model, settings), settings)
    assert all(answer.kept is not None and int(answer.kept.offsets.diff().max()) <= 5 for group in sampled for answer in group.answers)
    figures = update.update(subject, sampled, settings, 1e-3)
    assert figures.outcome == "updated" and figures.max_ratio == 1.0 and figures.gap_max < 1e-5


@pytest.mark.parametrize("kind", ["tis", "icepop", "sequence-mask"])
def test_corrections_of_an_engine_that_agrees_change_almost_nothing(kind):
    settings = config()
    sampled = groups(build(), settings)
    plain = _gradients(settings, sampled)[1]
    corrected = _gradients(config(objective=presets.Objective(correction=kind)), sampled)[1]
    assert corrected.gradient_norm == pytest.approx(plain.gradient_norm, rel=1e-3)


def test_an_interrupted_step_leaves_no_trace():
    settings = config()
    subject = trainee(settings=settings)
    sampled = groups(subject.model, settings)
    before = copy.deepcopy(subject.model.state_dict())
    assert update.update(subject, sampled, settings, 1e-2, lambda: True).outcome == "interrupted"
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())
    assert not subject.optimizer.gradients()
