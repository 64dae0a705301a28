"""Speculation changes no token: real modules, forced drafts, roll-back, and the p/q rule (field case F18)."""

from __future__ import annotations

import pytest
import torch

from rorqual.errors import ConfigError
from rorqual.inference.sampler import SamplingParams, sample, uniform
from rorqual.inference.speculative import accept_or_resample, acceptance_rate, residual
from tests.inference.models import CheckedDrafter, FixedDrafter, agreeing, build, is_its_own_choice, make_cache, prompt
from tests.reference.drafter import MTPDrafter
from tests.reference.loop import Generator, generate

LONG = SamplingParams(max_tokens=200, temperature=0, ignore_eos=True)
SHORT = SamplingParams(max_tokens=17, temperature=0, ignore_eos=True)
SAMPLED = SamplingParams(max_tokens=17, temperature=1.0, top_k=20, top_p=0.95, seed=7, ignore_eos=True)
P, Q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.8, 0.1])


def _ids(generation):  # type: ignore[no-untyped-def]
    return [completion.token_ids for completion in generation.completions]


def test_200_greedy_tokens_are_those_of_plain_decoding():
    """Batch 1 and 3, a prompt of one token; and both are what one forward without a cache would choose at each place."""
    model, prompts = build(), [[5], prompt(9, 1), prompt(30, 2)]
    plain = generate(model, prompts, LONG)
    drafted = generate(model, prompts, LONG, num_drafts=1)
    assert _ids(drafted) == _ids(plain)
    assert _ids(generate(model, prompts[:1], LONG, num_drafts=1)) == _ids(plain)[:1]
    assert all(is_its_own_choice(model, ids, out, LONG) for ids, out in zip(prompts, _ids(plain), strict=True))
    assert drafted.stats.decoded_tokens == plain.stats.decoded_tokens == 199 * 3


@pytest.mark.parametrize(("depth", "params"), [(1, SHORT), (1, SAMPLED), (2, SAMPLED), (3, SHORT)])
def test_drafts_are_the_modules_own_and_output_is_plain(depth, params):
    """Every draft equals what the modules say without a cache; some are accepted, some are not; batch of uneven rows."""
    model, prompts = agreeing(depth), [prompt(1), prompt(5, 1), prompt(20, 2)]
    drafter = CheckedDrafter(model, depth)
    cache = make_cache(model, 3, depth)
    drafted = generate(model, prompts, params, drafter=drafter, cache=cache, chunk_size=7)
    assert _ids(drafted) == _ids(generate(model, prompts, params))
    assert drafter.compared >= 3 * depth and 0 < drafted.stats.accepted < drafted.stats.drafts


@pytest.mark.parametrize(("depth", "drafts"), [(1, 1), (2, 2), (3, 3), (3, 1), (3, 2)])
def test_modules_that_are_right_give_one_token_more_each(depth, drafts):
    model = agreeing(depth, right=True)
    params = SamplingParams(max_tokens=1 + 6 * (drafts + 1), temperature=0, ignore_eos=True)
    drafted = generate(model, [[5], prompt(9, 1)], params, num_drafts=drafts)
    assert _ids(drafted) == _ids(generate(model, [[5], prompt(9, 1)], params))
    assert drafted.stats.acceptance_rate == 1.0 and drafted.stats.tokens_per_step == drafts + 1


@pytest.mark.parametrize(("kind", "tokens_per_step"), [("right", 2.0), ("wrong", 1.0), ("eos", 1.0)])
@pytest.mark.parametrize("params", [SHORT, SAMPLED])
def test_forced_drafts(kind, tokens_per_step, params):
    model, prompts = build(), [[5], prompt(9, 1), prompt(30, 2)]
    plain = _ids(generate(model, prompts, params))
    assert all(1 not in out for out in plain)
    eos_counts = SamplingParams(max_tokens=17, temperature=params.temperature, top_k=params.top_k, top_p=params.top_p, seed=params.seed)
    forced = generate(model, prompts, eos_counts, drafter=FixedDrafter(kind, plain))
    assert _ids(forced) == plain
    assert [completion.finish_reason for completion in forced.completions] == ["length"] * 3
    assert forced.stats.tokens_per_step == tokens_per_step


@pytest.mark.parametrize("kind", ["right", "wrong"])
def test_an_end_token_of_the_target_ends_at_once(kind):
    """The target's own end token stops the row, accepted drafts behind it are dropped; its neighbour goes on."""
    model, prompts = build(), [[5], prompt(9, 1)]
    free = _ids(generate(model, prompts, SHORT))
    stop = next(token for token in free[0][6:] if token not in free[1] and token not in free[0][:6])
    place = free[0].index(stop)
    params = SamplingParams(max_tokens=17, temperature=0, stop_token_ids=(stop,), ignore_eos=True)
    for num_drafts in (1, 3):
        stopped = generate(model, prompts, params, drafter=FixedDrafter(kind, free, num_drafts))
        assert _ids(stopped) == [free[0][: place + 1], free[1]]
        assert [completion.finish_reason for completion in stopped.completions] == ["stop", "length"]


@pytest.mark.parametrize("kind", ["right", "wrong"])
def test_cache_lengths_after_each_step_are_the_accepted_ones(kind):
    model, prompts = build(), [[5], prompt(9, 1)]
    plain = _ids(generate(model, prompts, SHORT))
    cache = make_cache(model, 2)
    loop = Generator(model, prompts, SHORT, drafter=FixedDrafter(kind, plain, 3), cache=cache)
    loop.step()
    while not loop.done:
        assert [cache.lengths_of(layer) for layer in range(3)] == [[len(s.tokens) - 1 for s in loop.running]] * 3
        assert all(cache._storage[0][row, length:].isnan().all() for row, length in enumerate(cache.lengths))
        loop.step()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_modules_own_caches_are_rolled_back_to_what_is_final(depth):
    """Module entries made from drafts, and filling of shorter rows, are gone after each step."""
    model, prompts = agreeing(depth), [[5], prompt(9, 1), prompt(30, 2)]
    cache = make_cache(model, 3, depth)
    loop = Generator(model, prompts, SHORT, num_drafts=1, drafter=MTPDrafter(model, depth), cache=cache)
    loop.step()
    while not loop.done:
        before = [len(s.tokens) - 1 for s in loop.running]
        rows = list(loop.running)
        loop.step()
        if len(loop.running) < len(rows):
            break
        final = [max(0, length - depth + 1) for length in before]
        assert [cache.lengths_of(layer) for layer in range(3, 3 + depth)] == [final] * depth
        assert cache.lengths == [len(s.tokens) - 1 for s in loop.running]


def test_speculation_switched_on_or_off_half_way_changes_nothing():
    model, ids = agreeing(1), prompt(12)
    whole = _ids(generate(model, [ids], SAMPLED))[0]
    for drafts_first, drafts_after in ((1, 0), (0, 1)):
        first = SamplingParams(max_tokens=10, temperature=1.0, top_k=20, top_p=0.95, seed=7, ignore_eos=True)
        after = SamplingParams(max_tokens=7, temperature=1.0, top_k=20, top_p=0.95, seed=7, ignore_eos=True)
        begun = _ids(generate(model, [ids], first, num_drafts=drafts_first))[0]
        assert begun + _ids(generate(model, [ids + begun], after, num_drafts=drafts_after))[0] == whole


def test_drafts_stay_inside_the_vocabulary():
    model = agreeing(1)
    with torch.no_grad():
        model.lm_head.weight[200:] *= 50  # the padding is what both target and module like best
    seen: list[int] = []

    class Watched(MTPDrafter):
        def propose(self, sequences, cache):  # type: ignore[no-untyped-def]
            drafts = super().propose(sequences, cache)
            seen.extend(drafts.flatten().tolist())
            return drafts

    for params in (SHORT, SAMPLED):
        out = generate(model, [[5]], params, vocab_limit=200, drafter=Watched(model, 1, 200))
        assert max(_ids(out)[0]) < 200 and max(seen) < 200


@pytest.mark.parametrize(
    ("depth", "asked", "message"), [(0, 1, "no MTP module"), (1, 2, "1 MTP module;|1 MTP module,"), (2, 3, "2 MTP modules")]
)
def test_more_drafts_than_modules_are_refused(depth, asked, message):
    model = build(num_nextn_predict_layers=depth)
    with pytest.raises(ConfigError, match=rf"num_drafts \({asked}\).*({message})"):
        generate(model, [[5]], SHORT, num_drafts=asked)


# ---------------------------------------------------------------------- the p/q rule and the shared noise, F18's numbers


def test_pq_rule_acceptance_and_residual():
    assert acceptance_rate(P, Q) == pytest.approx(0.5)
    assert residual(P, Q).tolist() == pytest.approx([0.8, 0.0, 0.2])
    assert residual(P, P).tolist() == pytest.approx(P.tolist())


def test_pq_rule_gives_the_targets_frequencies():
    count = 200_000
    u = uniform(torch.tensor([11, 22, 33]), count)
    drafts = torch.searchsorted(Q.double().cumsum(0), u[0]).clamp_max(2).tolist()
    accepted, seen = 0, [0, 0, 0]
    table = {}  # the rule is a step function of residual_u; three drafts, so a handful of distinct outcomes
    for draft, accept_u, residual_u in zip(drafts, u[1].tolist(), u[2].tolist(), strict=True):
        yes = accept_u * float(Q[draft]) < float(P[draft])
        case = (draft, yes, residual_u < 0.8)
        if case not in table:
            table[case] = accept_or_resample(P, Q, draft, accept_u, residual_u)
        accepted += table[case][0]
        seen[table[case][1]] += 1
    assert accepted / count == pytest.approx(0.5, abs=0.005)
    assert [number / count for number in seen] == pytest.approx(P.tolist(), abs=0.005)


def test_pq_rule_at_its_borders():
    sure = torch.tensor([0.0, 1.0, 0.0])
    assert accept_or_resample(sure, Q, 1, 0.999, 0.0) == (True, 1)
    assert accept_or_resample(sure, Q, 0, 0.0, 0.999) == (False, 1)
    assert accept_or_resample(P, P, 2, 0.9999, 0.5) == (True, 2)
    assert accept_or_resample(P, Q, 1, 0.99, 0.7999) == (False, 0)
    assert accept_or_resample(P, Q, 1, 0.99, 0.8001) == (False, 2)


def test_shared_noise_accepts_as_its_formula_says_and_keeps_the_frequencies():
    """Acceptance sum_i 1 / sum_j max(p_j/p_i, q_j/q_i) = 0.48696, beside 0.5 of the p/q rule; output frequencies are p."""
    formula = sum(1 / sum(max(pj / pi, qj / qi) for pj, qj in zip(P, Q, strict=True)) for pi, qi in zip(P, Q, strict=True))
    assert float(formula) == pytest.approx(0.48696, abs=1e-5)
    count, each = 60_000, [SamplingParams(seed=5)] * 60_000
    places = list(range(count))
    target = sample(P.log().expand(count, -1), each, [0] * count, places)
    draft = sample(Q.log().expand(count, -1), each, [0] * count, places)
    assert float((target == draft).double().mean()) == pytest.approx(0.48696, abs=0.005)
    assert (torch.bincount(target) / count).tolist() == pytest.approx(P.tolist(), abs=0.005)
    assert (torch.bincount(draft) / count).tolist() == pytest.approx(Q.tolist(), abs=0.005)
