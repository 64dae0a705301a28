"""The engine's tokens are the simple loop's, whatever the chunks, neighbours, cached prefixes, drafts and preemptions (F11, F18, F22)."""

from __future__ import annotations

import dataclasses
import functools
import time

import pytest

from rorqual.errors import ConfigError, DataError
from rorqual.inference.engine import Engine
from rorqual.inference.sampler import SamplingParams
from rorqual.inference.scheduler import QueueFullError
from rorqual.kernels import native
from tests.inference.models import GREEDY, agreeing, build, prompt
from tests.reference.loop import generate

SHORT = dataclasses.replace(GREEDY, max_tokens=20)
SAMPLED = SamplingParams(max_tokens=20, temperature=0.8, top_p=0.9, top_k=50, seed=3, ignore_eos=True)
PROMPTS = [prompt(1), prompt(13, 1), prompt(50, 2), prompt(16, 3), prompt(33, 4), prompt(100, 5), prompt(17, 6), prompt(5, 7)]


@functools.cache
def _model(depth: int = 1):  # type: ignore[no-untyped-def]
    return agreeing(depth)


@functools.cache
def _wanted(depth: int, sampled: bool) -> list[list[int]]:
    return [c.token_ids for c in generate(_model(depth), PROMPTS, SAMPLED if sampled else SHORT).completions]


def run(engine: Engine, prompts, params, names=None):  # type: ignore[no-untyped-def]
    """Tokens per (prompt, choice)."""
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
    for number, (ids, one) in enumerate(zip(prompts, each, strict=True)):
        engine.add_request(str(number), ids, one)
    out: dict[tuple[int, int], list[int]] = {}
    for _ in range(5000):
        for step in engine.step():
            out.setdefault((int(step.request_id), step.index), []).extend(step.new_token_ids)
        if not engine.has_work:
            break
    assert not engine.has_work and engine.stats.running == engine.stats.waiting == 0 and engine.stats.cache_usage == 0
    return [out[key] for key in sorted(out)]


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize(("depth", "drafts"), [(1, 0), (1, 1), (1, 3), (2, 2), (2, 3), (1, "auto")])
def test_batches_and_drafts(depth, drafts, sampled):
    engine = Engine(_model(depth), speculative=drafts, num_blocks=80, poison=True)
    assert run(engine, PROMPTS, SAMPLED if sampled else SHORT) == _wanted(depth, sampled)
    assert engine.stats.generation_tokens == 160
    if drafts not in (0, "auto"):
        assert 0 < engine.stats.accepted <= engine.stats.drafts


@pytest.mark.skipif(native.library().library is None, reason="no compiled kernels")
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_step_makes_the_next_drafts_too(temperature, monkeypatch):
    """Where tokens are drawn by temperature alone; also on and off half way, under preemption and with log-probabilities."""
    params = SamplingParams(max_tokens=20, temperature=temperature, seed=3, ignore_eos=True)
    wanted = [c.token_ids for c in generate(_model(), PROMPTS, params).completions]
    engine = Engine(_model(), speculative=1, num_blocks=80, poison=True)
    late, draft = [], engine.runner._draft
    monkeypatch.setattr(engine.runner, "_draft", lambda group, *rest: late.extend(s for s in group if rest[1]) or draft(group, *rest))
    assert run(engine, PROMPTS, [dataclasses.replace(params, logprobs=0 if n % 2 else None) for n in range(8)]) == wanted
    assert 0 < engine.stats.accepted < engine.stats.drafts and len(late) < engine.stats.drafts / 3
    for blocks in (80, 12):
        engine, turns = Engine(_model(), speculative=1, num_blocks=blocks, poison=True), iter(range(1000))
        monkeypatch.setattr(engine, "_speculates_now", lambda turns=turns: next(turns) % 5 < 3)
        assert run(engine, PROMPTS, params) == wanted


@pytest.mark.parametrize("budget", [1, 2, 7, 16, 50, 512])
def test_token_budgets(budget):
    engine = Engine(_model(), speculative=1, max_num_batched_tokens=budget, num_blocks=80, poison=True)
    assert run(engine, PROMPTS[1:4], SHORT) == _wanted(1, False)[1:4]


def test_one_at_a_time_and_again_from_cached_prefixes():
    engine = Engine(_model(), speculative=2, max_num_seqs=1, num_blocks=80, poison=True)
    assert run(engine, PROMPTS, SHORT) == _wanted(1, False)
    before = engine.stats.prefix_hits
    assert run(engine, PROMPTS, SHORT) == _wanted(1, False)
    assert engine.stats.prefix_hits - before == 0 + 0 + 48 + 0 + 32 + 96 + 16 + 0


@pytest.mark.parametrize("drafts", [0, 2])
def test_preemption_changes_nothing(drafts):
    engine = Engine(_model(), speculative=drafts, num_blocks=12, poison=True)
    assert run(engine, PROMPTS, SAMPLED) == _wanted(1, True)
    assert engine.stats.preemptions > 0


def test_choices_share_the_prompt_and_are_the_loops():
    params = dataclasses.replace(SAMPLED, n=4)
    wanted = [c.token_ids for c in generate(_model(), [PROMPTS[2]], params).completions]
    engine = Engine(_model(), speculative=1, num_blocks=80, poison=True)
    assert run(engine, [PROMPTS[2]], params) == wanted
    assert engine.stats.prefix_hits == 3 * 48


def test_the_end_token_in_a_draft_and_the_length():
    free = _wanted(1, False)[2]
    stop = dataclasses.replace(SHORT, stop_token_ids=(free[7],))
    engine = Engine(_model(), speculative=3, num_blocks=80, poison=True)
    assert run(engine, [PROMPTS[2]], stop) == [free[: free.index(free[7]) + 1]]


def test_log_probabilities_do_not_depend_on_speculation():
    params, got = dataclasses.replace(SHORT, logprobs=2, prompt_logprobs=1), []
    for drafts in (0, 2):
        engine = Engine(_model(), speculative=drafts, num_blocks=80, max_num_batched_tokens=13)
        engine.add_request("a", PROMPTS[2], params)
        outs = []
        while engine.has_work:
            outs += engine.step()
        got.append(([p for out in outs for p in out.new_logprobs], [out.prompt_logprobs for out in outs if out.prompt_logprobs][0]))
    for plain, other in zip(*(lists[0] + lists[1][1:] for lists in got), strict=True):
        assert plain.token_id == other.token_id and abs(plain.logprob - other.logprob) < 1e-4
    assert len(got[0][1]) == 50 and got[0][1][0] is None


def test_abort_frees_everything_and_deadlines_end_a_request():
    engine = Engine(_model(), num_blocks=80, poison=True)
    engine.add_request("a", PROMPTS[2], dataclasses.replace(SHORT, n=2))
    engine.step()
    engine.abort("a")
    engine.abort("unknown")
    assert not engine.has_work and engine.stats.cache_usage == 0
    engine.add_request("b", PROMPTS[2], SHORT, deadline=time.monotonic())
    assert [(o.request_id, o.finish_reason) for o in engine.step()] == [("b", "abort")]
    assert engine.step() == [] and not engine.has_work


def test_refusals():
    model = build(max_position_embeddings=32)
    engine = Engine(model, queue_limit=2)
    with pytest.raises(DataError, match="use max_tokens of at most 22"):
        engine.add_request("a", prompt(10), GREEDY)
    with pytest.raises(DataError, match="empty"):
        engine.add_request("a", [], SHORT)
    with pytest.raises(DataError, match="place 0"):
        engine.add_request("a", [256], SHORT)
    with pytest.raises(ConfigError, match="need a tokenizer"):
        engine.add_request("a", [5], dataclasses.replace(SHORT, stop=("x",)))
    engine.add_request("a", [5], SHORT)
    with pytest.raises(ConfigError, match="in use"):
        engine.add_request("a", [5], SHORT)
    with pytest.raises(QueueFullError, match="limit is 2"):
        engine.add_request("b", [5], dataclasses.replace(SHORT, n=2))
    with pytest.raises(ConfigError, match="needs an MTP module"):
        Engine(build(num_nextn_predict_layers=0), speculative=1)
    with pytest.raises(DataError, match="cache slots"):
        Engine(model, num_blocks=1).add_request("a", prompt(10), SHORT)


def test_speculation_switched_on_and_off_half_way(monkeypatch):
    engine = Engine(_model(2), speculative=2, num_blocks=80, poison=True)
    turns = iter(range(1000))
    monkeypatch.setattr(engine, "_speculates_now", lambda: next(turns) % 5 < 2)
    assert run(engine, PROMPTS, SAMPLED) == _wanted(2, True)
