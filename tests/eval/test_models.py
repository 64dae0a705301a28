"""The engine as a model: likelihoods, whole texts and answers; what does not fit is cut and told, never lost (F40)."""

from __future__ import annotations

import math

import pytest
import torch

from rorqual.errors import ConfigError, NonFiniteError
from rorqual.eval.models import Asking, Failure, Generation, item_seed
from tests.eval import small


def test_a_uniform_model_gives_log_v_per_token():
    made = small.engine_model(uniform=True)
    size = math.log(small.tokenizer().vocab_size)
    first, second = made.likelihood([("Question: which", " whale"), ("", "ab")])
    assert first.logprob == pytest.approx(-size * first.tokens, rel=1e-6) and first.tokens >= 1
    assert second.logprob == pytest.approx(-size * second.tokens, rel=1e-6)
    (text,) = made.text_scores(["\u00e9\U0001f642"])
    assert text.bytes == 6 and text.nll == pytest.approx(size * text.tokens, rel=1e-6)


def test_likelihood_is_the_difference_of_whole_sequences():
    made = small.engine_model()
    encoder = made.encoder
    for context, continuation in [("the blue", " whale sings"), ("Answer: ", "blue"), ("", "whale"), ("wh", "ale sings")]:
        (found,) = made.likelihood([(context, continuation)])
        (pair,) = encoder.pairs([(context, continuation)])
        expected = sum(small.reference(pair.whole, 1)) - (sum(small.reference(pair.context, 1)) if len(pair.context) > 1 else 0.0)
        assert found.logprob == pytest.approx(expected, abs=1e-4)


def test_a_long_text_is_scored_the_same_whatever_the_batch_and_each_token_once():
    made = small.engine_model(window=64)
    text = "the whale sings, the whale dives; " * 12
    ids = small.tokenizer().encode_text(text)
    assert len(ids) > 129  # more than two windows
    alone = made.text_scores([text])[0]
    together = made.text_scores(["short", text, "another one"])[1]
    assert alone.tokens == len(ids) and alone.nll == pytest.approx(together.nll, abs=1e-4)
    tokens, total, end = [*made.encoder.first, *ids], 0.0, 65
    total -= sum(small.reference(tokens[:end], 1))
    while end < len(tokens):
        last = min(len(tokens), end + 32)
        begin = last - 65
        total -= sum(small.reference(tokens[begin:last], end - begin))
        end = last
    assert alone.nll == pytest.approx(total, abs=1e-3)


def test_context_that_does_not_fit_is_cut_and_told():
    made = small.engine_model(window=32)
    long, short = made.likelihood([("the whale sings " * 30, "blue"), ("the", " blue")])
    assert long.cut and not short.cut
    (over,) = made.likelihood([("whale", " sings and dives" * 20)])
    assert over.cut and over.tokens > 64


def test_choices_share_their_context():
    made = small.engine_model()
    context = "Question: which whale sings all night long in the deep blue sea?\nAnswer:"
    made.likelihood([(context, end) for end in (" blue", " grey whale", " pink", " none of them")])
    wholes = [
        pair.whole[:-1] for pair in made.encoder.pairs([(context, end) for end in (" blue", " grey whale", " pink", " none of them")])
    ]
    assert made.computed()["tokens"] == len({tuple(ids[: place + 1]) for ids in wholes for place in range(len(ids))})


def _answers(made, prompts, asking) -> list:
    return [found for _, found in sorted(made.generate(prompts, asking), key=lambda pair: pair[0])]


PROMPTS = [
    (f"t/{number}", "Question: which whale sings?\nAnswer: the blue whale sings, 42 times a day; " + "na " * number) for number in range(5)
]


def test_answers_do_not_depend_on_the_batch_and_end_at_stop_strings():
    made = small.engine_model()
    asking = Asking(max_tokens=12, temperature=0.9, seed=3, n=2)
    together = _answers(made, PROMPTS, asking)
    alone = [_answers(made, [one], asking)[0] for one in PROMPTS]
    assert together == alone and together[0][0].text != together[0][1].text
    assert all(isinstance(one, Generation) and one.tokens == 12 and one.finish_reason == "length" for one in together[0])
    text = _answers(made, PROMPTS[:1], Asking(max_tokens=12))[0][0].text
    stop = text[2:4]
    (cut,) = _answers(made, PROMPTS[:1], Asking(max_tokens=12, stop=(stop,)))
    assert cut[0].text == text[: text.find(stop)] and cut[0].finish_reason == "stop"


def test_seeds_belong_to_items():
    assert item_seed(0, "a") != item_seed(0, "b") != item_seed(1, "b") and item_seed(5, "x") == item_seed(5, "x")


def test_long_prompts_keep_their_end_and_room_for_the_answer():
    made = small.engine_model(window=40)
    ids, cut, most = made.prompt("the whale sings " * 40, Asking(max_tokens=100))
    assert cut and most == 20 and len(ids) == 20
    assert _answers(made, [("a", "the whale sings " * 40)], Asking(max_tokens=100))[0][0].prompt_cut


def test_a_chat_prompt_that_does_not_fit_is_a_counted_failure():
    made = small.engine_model(window=40)
    (found,) = _answers(made, [("a", "the whale sings " * 40)], Asking(max_tokens=10, chat=True))
    assert isinstance(found, Failure) and "window" in found.reason
    (found,) = _answers(made, [("a", "hi")], Asking(max_tokens=10, chat=True))
    assert isinstance(found[0], Generation)


def test_an_empty_prompt_and_only_the_stop_token():
    made = small.engine_model()
    engine = made.engine
    engine.end_ids = frozenset(range(small.tokenizer().vocab_size))
    (found,) = _answers(made, [("a", "")], Asking(max_tokens=4))
    assert found[0] == Generation("", "stop", 1)


def test_an_abandoned_run_leaves_the_engine_idle():
    made = small.engine_model()
    stream = made.generate(PROMPTS, Asking(max_tokens=30))
    next(stream)
    stream.close()
    assert not made.engine.has_work
    made.likelihood([("a", " b")])


def test_numbers_that_are_none_are_refused():
    made = small.engine_model(uniform=True)
    weight = made.engine.model.model.norm.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    try:
        with pytest.raises(NonFiniteError, match="NaN"):
            made.likelihood([("a", " b")])
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_a_window_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="window"):
        small.engine_model(window=1)


def test_progress_within_texts_and_the_weights_are_told():
    made, shares = small.engine_model(window=16), list[float]()
    made.text_scores(["the whale sings, the whale dives; " * 12] * 2, told=shares.append)
    assert len(shares) > 1 and shares[-1] == 1.0 and shares == sorted(shares)
    same, other = small.engine_model().describe(), small.engine_model(uniform=True).describe()
    assert made.describe()["weights_sample_sha256"] == same["weights_sample_sha256"] != other["weights_sample_sha256"]
