"""Each piece of the policy objective against numbers worked out by hand (field case F34)."""

import math

import pytest
import torch

from rorqual.posttrain import objectives
from rorqual.posttrain.objectives import Denominators, policy_loss
from rorqual.posttrain.presets import Objective

LOG2 = math.log(2.0)


def test_ratio_is_one_to_the_bit_for_equal_bits():
    x = torch.randn(1000) - 3
    assert torch.equal(objectives.token_ratio(x, x.clone()), torch.ones(1000))


def test_ratios_by_hand():
    """Two answers of 1 and 2 tokens whose log-ratios are log 2; log 2 and log 8."""
    new, old, answer = torch.tensor([LOG2, LOG2, 3 * LOG2]), torch.zeros(3), torch.tensor([0, 1, 1])
    assert torch.allclose(objectives.token_ratio(new, old), torch.tensor([2.0, 2.0, 8.0]))
    assert torch.allclose(objectives.sequence_log_ratio(new, old, answer, 2, mean=False).exp(), torch.tensor([2.0, 16.0]))
    assert torch.allclose(objectives.sequence_log_ratio(new, old, answer, 2, mean=True).exp(), torch.tensor([2.0, 4.0]))
    assert torch.isfinite(objectives.token_ratio(torch.tensor([0.0]), torch.tensor([-1e9]))).all()


def test_clip_by_hand():
    """A = 1: 1.5 is clipped to 1.2, 0.5 stays; A = -1: 1.5 stays -1.5, 0.5 is clipped to -0.8; dual 3 bounds a ratio of 5 at -3."""
    ratio, gain = torch.tensor([1.5, 0.5, 1.5, 0.5, 5.0]), torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0])
    assert torch.allclose(objectives.clipped(ratio, gain, 0.2, 0.2), torch.tensor([1.2, 0.5, -1.5, -0.8, -5.0]))
    assert torch.allclose(objectives.clipped(ratio, gain, 0.2, 0.28, 3.0), torch.tensor([1.28, 0.5, -1.5, -0.8, -3.0]))
    assert objectives.was_clipped(ratio, gain, 0.2, 0.2).tolist() == [True, False, False, True, False]


def test_kl_by_hand():
    """Reference minus policy +0.5 and -0.5: e^0.5 - 0.5 - 1 and e^-0.5 + 0.5 - 1 (F34)."""
    out = objectives.kl_k3(torch.zeros(2), torch.tensor([0.5, -0.5]))
    assert torch.allclose(out, torch.tensor([0.148721, 0.106531]), atol=1e-6)
    assert (objectives.kl_k3(torch.randn(1000), torch.randn(1000)) >= 0).all()


@pytest.mark.parametrize(("aggregation", "expected"), [("answer-mean", 0.0), ("token-mean", 0.5), ("constant", 0.25)])
@pytest.mark.parametrize("cut", [1, 2])
def test_denominators_of_the_field_case(aggregation, expected, cut):
    """G 2, lengths 1 and 3, advantages +1 and -1, ratio 1, constant length 4; in one batch and in two micro-batches (F34)."""
    total = Denominators(answers=2, tokens=4, max_new_tokens=4)
    parts = [([0, 1, 1, 1], [1.0, -1.0])] if cut == 1 else [([0], [1.0]), ([0, 0, 0], [-1.0])]
    loss = 0.0
    for answer, gain in parts:
        logp = torch.full((len(answer),), -1.0, requires_grad=True)
        terms = policy_loss(
            Objective(aggregation=aggregation), logp=logp, old=logp.detach(), answer=torch.tensor(answer), advantage=torch.tensor(gain),
            counted=torch.ones(len(gain), dtype=torch.bool), total=total,
        )  # fmt: skip
        assert terms.clipped == 0 and terms.max_ratio == 1.0
        loss += float(terms.loss.detach())
    assert loss == pytest.approx(expected, abs=1e-7)


def _example(seed=0):
    g = torch.Generator().manual_seed(seed)
    answer = torch.repeat_interleave(torch.arange(4), torch.tensor([3, 1, 5, 2]))
    old = -torch.rand(11, generator=g)
    return answer, old, old + 0.3 * torch.randn(11, generator=g), torch.tensor([1.0, -1.0, 0.5, -0.5]), old - 0.1


@pytest.mark.parametrize(
    "objective",
    [Objective(kl_beta=0.04), Objective(ratio="sequence", kl_beta=0.04), Objective(aggregation="token-mean", clip_high=0.28),
     Objective(aggregation="constant", scale="none"), Objective(ratio="sequence-mean", clip_low=3e-4, clip_high=4e-4, kl_beta=0.01),
     Objective(correction="tis"), Objective(correction="icepop", correction_high=5.0), Objective(correction="sequence-mask")],
)  # fmt: skip
def test_loss_and_gradient_do_not_depend_on_micro_batches(objective):
    answer, old, new, gain, reference = _example()
    total = Denominators(answers=4, tokens=11, max_new_tokens=8)

    def run(cuts):
        logp = new.clone().requires_grad_()
        loss = torch.zeros(())
        for first, last in cuts:
            inside = (answer >= first) & (answer < last)
            terms = policy_loss(
                objective, logp=logp[inside], old=old[inside], answer=answer[inside] - first, advantage=gain[first:last],
                counted=torch.ones(last - first, dtype=torch.bool), total=total, reference=reference[inside], sampler=(old - 0.05)[inside],
            )  # fmt: skip
            loss = loss + terms.loss
        loss.backward()
        return loss.detach(), logp.grad

    whole, cut = run([(0, 4)]), run([(0, 1), (1, 3), (3, 4)])
    assert torch.allclose(whole[0], cut[0], atol=1e-7) and torch.allclose(whole[1], cut[1], atol=1e-7)


def test_sequence_form_by_hand():
    """One answer of two tokens, log-ratios log 1.1 and log 1.0, A = 2, reference 0.5 above over the answer:
    J = 1.1 * 2 - 0.04 * (e^0.5 - 1.5)."""
    old = torch.tensor([-1.0, -2.0])
    logp = old + torch.tensor([math.log(1.1), 0.0])
    reference = logp + torch.tensor([0.5, 0.0])
    terms = policy_loss(
        Objective(ratio="sequence", kl_beta=0.04), logp=logp, old=old, answer=torch.tensor([0, 0]), advantage=torch.tensor([2.0]),
        counted=torch.tensor([True]), total=Denominators(1, 2, 4), reference=reference,
    )  # fmt: skip
    assert float(terms.loss) == pytest.approx(-(2.2 - 0.04 * 0.148721), abs=1e-5)


def test_on_policy_gradient_is_the_policy_gradient():
    """At ratio 1, d loss / d log pi_t = -A / (|o| N)."""
    logp = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    terms = policy_loss(
        Objective(), logp=logp, old=logp.detach(), answer=torch.tensor([0, 1, 1]), advantage=torch.tensor([1.5, -0.5]),
        counted=torch.tensor([True, True]), total=Denominators(2, 3, 4),
    )  # fmt: skip
    terms.loss.backward()
    assert torch.allclose(logp.grad, torch.tensor([-0.75, 0.125, 0.125]))


def test_answers_that_do_not_count_and_groups_without_signal_give_zero_gradient():
    for counted, gain in ((False, 1.0), (True, 0.0)):
        logp = torch.tensor([-1.0, -2.0], requires_grad=True)
        terms = policy_loss(
            Objective(), logp=logp, old=logp.detach() - 0.1, answer=torch.tensor([0, 0]), advantage=torch.tensor([gain]),
            counted=torch.tensor([counted]), total=Denominators(int(counted), 2 * int(counted), 4),
        )  # fmt: skip
        terms.loss.backward()
        assert torch.equal(logp.grad, torch.zeros(2)) and float(terms.loss.detach()) == 0.0


def test_corrections_by_hand():
    trainer, sampler, answer = torch.tensor([0.0, LOG2, -LOG2 * 2]), torch.tensor([0.0, -LOG2, 0.0]), torch.tensor([0, 1, 1])
    weights = {
        kind: objectives.correction_weights(kind, trainer, sampler, answer, 2, 0.5, 2.0).tolist()
        for kind in ("none", "tis", "icepop", "sequence-mask")
    }
    assert weights["none"] == [1, 1, 1]
    assert weights["tis"] == pytest.approx([1, 2, 0.25])
    assert weights["icepop"] == pytest.approx([1, 0, 0])
    assert weights["sequence-mask"] == [1, 1, 1]  # 4 * 1/4 = 1
