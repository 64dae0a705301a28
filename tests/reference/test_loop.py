"""Generation equals reading everything anew, whatever the chunks, cached prefixes and neighbours (field cases F04, F11, F22)."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

from rorqual.errors import ConfigError, DataError, NonFiniteError
from rorqual.inference.sampler import SamplingParams
from tests.inference.models import GREEDY, agreeing, build, is_its_own_choice, make_cache, prompt, without_cache
from tests.reference.cache import ContiguousCache
from tests.reference.loop import Generator, generate

SAMPLED = SamplingParams(max_tokens=16, temperature=0.8, top_p=0.9, top_k=50, seed=3, ignore_eos=True)
ONE = dataclasses.replace(GREEDY, max_tokens=1)


def _ids(generation):  # type: ignore[no-untyped-def]
    return [completion.token_ids for completion in generation.completions]


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_it_equals_reading_everything_anew(params):
    model, prompts = build(), [prompt(1), prompt(13, 1), prompt(60, 2)]
    params = dataclasses.replace(params, max_tokens=16)
    assert _ids(generate(model, prompts, params)) == [without_cache(model, ids, params) for ids in prompts]


@pytest.mark.parametrize(
    "changes",
    [
        {"q_lora_rank": None},
        {"v_head_dim": 20, "num_attention_heads": 3, "kv_lora_rank": 24},
        {"vocab_size": 259, "n_shared_experts": 2},
        {"first_k_dense_replace": 3, "num_nextn_predict_layers": 2},
        {"n_routed_experts": 0, "rope_scaling": None, "tie_word_embeddings": True},
        {
            "topk_method": "greedy",
            "scoring_func": "softmax",
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "model_type": "deepseek_v2",
        },
    ],
)
def test_other_shapes_of_the_family(changes):
    model, params = build(**changes), dataclasses.replace(GREEDY, max_tokens=8)
    out = _ids(generate(model, [prompt(12), [9]], params, num_drafts=model.config.num_nextn_predict_layers))
    assert out == [without_cache(model, ids, params) for ids in (prompt(12), [9])]


# ---------------------------------------------------------------------- F11


@functools.cache
def _model():  # type: ignore[no-untyped-def]
    return agreeing(1)


@functools.cache
def _plain() -> tuple[torch.Tensor, list[int]]:
    """Last logits of the 50-token prompt and its 32 greedy tokens, without a cache."""
    with torch.no_grad():
        logits = _model().logits(_model()(torch.tensor([prompt(50)])).hidden[0, -1])
    return logits, without_cache(_model(), prompt(50), GREEDY)


def _run(monkeypatch, prompts, cache, chunk_size, drafts):  # type: ignore[no-untyped-def]
    """(last prompt logits per row, tokens per row)."""
    model, seen = _model(), []

    def logits(hidden):  # type: ignore[no-untyped-def]
        seen.append(type(model).logits(model, hidden))
        return seen[-1]

    monkeypatch.setattr(model, "logits", logits)
    out = _ids(generate(model, prompts, GREEDY, num_drafts=drafts, cache=cache, chunk_size=chunk_size))
    return seen[0], out


@pytest.mark.parametrize("chunk_size", [1, 7, 16, 49, 50])
def test_chunks_and_cached_prefixes(monkeypatch, chunk_size):
    """Four rows of one prompt, of which 0, 20, 49 and all 50 tokens are cached; MTP drafts, whose cache is behind the trunk's."""
    cache = make_cache(_model(), 4, 1)
    for row, cached in ((1, 20), (2, 49), (3, 50)):
        generate(_model(), [prompt(50)[:cached]], ONE, num_drafts=1, cache=cache.rows([row]))
    assert cache.lengths == [0, 20, 49, 50]
    logits, tokens = _run(monkeypatch, [prompt(50)] * 4, cache, chunk_size, 1)
    assert (logits - _plain()[0]).abs().max() < 1e-5
    assert tokens == [_plain()[1]] * 4


@pytest.mark.parametrize("cached", [0, 20, 49, 50])
def test_cached_prefixes_alone_and_without_drafts(monkeypatch, cached):
    cache = make_cache(_model(), 1)
    if cached:
        generate(_model(), [prompt(50)[:cached]], ONE, cache=cache)
    logits, tokens = _run(monkeypatch, [prompt(50)], cache, 16, 0)
    assert (logits[0] - _plain()[0]).abs().max() < 1e-5 and tokens == [_plain()[1]]


@pytest.mark.parametrize(("chunk_size", "drafts"), [(7, 1), (256, 0)])
def test_neighbours_of_other_lengths(monkeypatch, chunk_size, drafts):
    short, long = prompt(3, 8), prompt(200, 9)
    logits, tokens = _run(monkeypatch, [short, prompt(50), long], make_cache(_model(), 3, drafts), chunk_size, drafts)
    assert (logits[1] - _plain()[0]).abs().max() < 1e-5
    assert tokens[1] == _plain()[1]
    assert is_its_own_choice(_model(), short, tokens[0], GREEDY) and is_its_own_choice(_model(), long, tokens[2], GREEDY)


def test_a_shared_prefix_that_diverges_and_storage_that_is_used_again(monkeypatch):
    drafts, cache = 1, make_cache(_model(), 1, 1)
    other = prompt(50)[:20] + prompt(30, 4)
    generate(_model(), [other], GREEDY, num_drafts=drafts, cache=cache)
    cache.truncate([20])
    logits, tokens = _run(monkeypatch, [prompt(50)], cache, 256, drafts)
    assert (logits[0] - _plain()[0]).abs().max() < 1e-5 and tokens == [_plain()[1]]
    cache.truncate([0])
    out = _ids(generate(_model(), [prompt(9, 5)], GREEDY, num_drafts=drafts, cache=cache))
    assert is_its_own_choice(_model(), prompt(9, 5), out[0], GREEDY)


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_both_forms_of_attention_over_the_cache(monkeypatch, form):
    """F10: the absorbed form takes its scale from the head, not from the latent width."""
    for block in _model().model.layers:
        monkeypatch.setattr(block.self_attn, "attention_form", form)
    logits, tokens = _run(monkeypatch, [prompt(50)], make_cache(_model(), 1, 1), 16, 1)
    assert (logits[0] - _plain()[0]).abs().max() < 1e-5 and tokens == [_plain()[1]]


# ---------------------------------------------------------------------- sampling, choices, stops


def test_neither_neighbours_nor_order_change_a_draw():
    model, prompts = build(), [prompt(1), prompt(13, 1), prompt(40, 2), prompt(13, 1)]
    together = _ids(generate(model, prompts, SAMPLED, num_drafts=1))
    assert together[1] == together[3]
    assert _ids(generate(model, prompts[::-1], SAMPLED)) == together[::-1]
    assert [_ids(generate(model, [ids], SAMPLED))[0] for ids in prompts] == together


def test_choices_of_one_prompt_differ_and_come_back_the_same():
    model = build()
    eight = generate(model, [prompt(5)], dataclasses.replace(SAMPLED, n=8))
    assert [completion.choice for completion in eight.completions] == list(range(8))
    assert len({tuple(ids) for ids in _ids(eight)}) == 8
    assert _ids(generate(model, [prompt(9, 1), prompt(5)], dataclasses.replace(SAMPLED, n=8)))[8:] == _ids(eight)
    assert _ids(generate(model, [prompt(5)], SAMPLED)) == _ids(eight)[:1]
    assert _ids(generate(model, [prompt(5)], dataclasses.replace(SAMPLED, seed=4))) != _ids(eight)[:1]


def test_each_prompt_with_its_own_settings():
    model, each = build(), [GREEDY, SAMPLED, dataclasses.replace(GREEDY, max_tokens=3)]
    out = _ids(generate(model, [prompt(5)] * 3, each, num_drafts=1))
    assert out == [without_cache(model, prompt(5), params) for params in each]


def test_the_end_token_and_stop_tokens_end_a_row_and_are_its_last_token():
    model = build()
    free = _ids(generate(model, [prompt(5)], GREEDY))[0]
    stop, place = free[10], free.index(free[10])
    out = generate(model, [prompt(5), prompt(7, 1)], dataclasses.replace(GREEDY, stop_token_ids=(stop,))).completions
    assert (out[0].token_ids, out[0].finish_reason) == (free[: place + 1], "stop")
    ending = build(eos_token_id=stop)
    assert _ids(generate(ending, [prompt(5)], dataclasses.replace(GREEDY, ignore_eos=False))) == [free[: place + 1]]
    assert _ids(generate(ending, [prompt(5)], GREEDY)) == [free]


def test_steps_stream_what_the_whole_gives():
    model, prompts = agreeing(1), [prompt(5), prompt(30, 1)]
    params = [dataclasses.replace(SAMPLED, max_tokens=9), SAMPLED]
    loop = Generator(model, prompts, params, num_drafts=1)
    streamed: dict[int, list[int]] = {0: [], 1: []}
    reasons: dict[int, list[str]] = {0: [], 1: []}
    while not loop.done:
        for delta in loop.step():
            assert delta.token_ids and not reasons[delta.index]
            streamed[delta.index] += delta.token_ids
            reasons[delta.index] += [delta.finish_reason] if delta.finish_reason else []
    assert list(streamed.values()) == _ids(generate(model, prompts, params)) and reasons == {0: ["length"], 1: ["length"]}
    assert loop.step() == []


def test_statistics_count_what_happened():
    stats = generate(build(), [prompt(5), prompt(8, 1)], [dataclasses.replace(GREEDY, max_tokens=4), GREEDY]).stats
    assert (stats.prompt_tokens, stats.cached_tokens, stats.new_tokens, stats.decoded_tokens, stats.row_steps) == (13, 0, 36, 34, 34)
    assert stats.tokens_per_step == 1.0 and stats.acceptance_rate is None and stats.tokens_per_second > 0


def test_generation_moves_nothing_in_the_model():
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    generate(model, [prompt(5)], SAMPLED, num_drafts=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and model.training


# ---------------------------------------------------------------------- limits and bad input


def test_ids_outside_the_tokenizer_are_never_sampled():
    """F22: vocabulary 129,280, tokenizer up to 128,814; the gap is made the likeliest."""
    model = build(vocab_size=129280)
    with torch.no_grad():
        model.lm_head.weight[128815:] = model.lm_head.weight[:465] * 20
    hot = SamplingParams(max_tokens=16, temperature=3.0, n=8, ignore_eos=True)
    out = generate(model, [[5, 6]], hot, vocab_limit=128815)
    assert max(max(ids) for ids in _ids(out)) <= 128814
    assert max(max(ids) for ids in _ids(generate(model, [[5, 6]], dataclasses.replace(hot, max_tokens=1)))) > 128814


@pytest.mark.parametrize("bad", [[256], [-1], [2**31], ["a"], [1.5], [True], [None], [2, 3, 256]])
def test_ids_outside_the_embedding_are_refused_and_the_next_call_works(bad):
    model = build()
    with pytest.raises(DataError, match="prompt 1 has .* from 0 to vocab_size - 1"):
        generate(model, [[5], bad], ONE)
    assert len(_ids(generate(model, [[5]], ONE))[0]) == 1


def test_an_empty_prompt_and_no_prompt_are_refused():
    with pytest.raises(DataError, match="prompt 0 is empty"):
        generate(build(), [[]], GREEDY)
    with pytest.raises(DataError, match="no prompt"):
        generate(build(), [], GREEDY)


def test_the_context_is_a_limit():
    model = build(max_position_embeddings=32)
    with pytest.raises(DataError, match="use max_tokens of at most 22"):
        generate(model, [prompt(10)], GREEDY)
    with pytest.raises(DataError, match="shorten the prompt"):
        generate(model, [prompt(32)], SamplingParams())
    full = generate(model, [prompt(10)], SamplingParams(temperature=0, ignore_eos=True), num_drafts=1).completions[0]
    assert len(full.token_ids) == 22 and full.finish_reason == "length"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_limit": 257}, r"vocab_limit \(257\).*larger than the embedding"),
        ({"vocab_limit": 0}, "vocab_limit"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"params": [GREEDY, GREEDY]}, "2 sampling parameters for 1 prompts"),
        ({"cache": ContiguousCache(build().config, 2)}, "2 rows for 1 sequences"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        generate(build(), [[5]], **{"params": GREEDY, **arguments})


def test_weights_that_are_not_finite_are_an_error_not_a_token():
    model = build()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN"):
        generate(model, [[5]], GREEDY)


def test_nan_of_a_slot_that_should_be_free_reaches_the_answer():
    """The test mode has teeth: a roll-back that forgets to move the lengths would read NaN."""
    model = build()
    cache = make_cache(model, 1)
    loop = Generator(model, [prompt(9)], GREEDY, cache=cache)
    loop.step()
    cache._storage[1][0, 4] = float("nan")
    with pytest.raises(NonFiniteError):
        loop.step()
