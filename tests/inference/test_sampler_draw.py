"""`draw`: order of what changes logits, exact penalties, log-probabilities of the stated distribution (field cases F22, F26)."""

from __future__ import annotations

import math

import pytest
import torch

from rorqual.errors import NonFiniteError
from rorqual.inference.sampler import Draw, SamplingParams, draw, sample, scores, token_logprobs

GREEDY = {"temperature": 0.0}


def one(logits, history=(), prompt=0, mask=None, stop_ids=(), **settings):
    """The token that a single row draws."""
    made = Draw(SamplingParams(**settings), 0, len(history), list(history), prompt, mask, frozenset(stop_ids))
    return draw(torch.tensor([logits]), [made]).tokens.item()


def test_min_p_keeps_a_share_of_the_largest():
    p = torch.tensor([[0.05, 0.5, 0.2, 0.25]])
    kept = scores(p.log(), [SamplingParams(min_p=0.41)]).softmax(-1)[0]
    assert [round(value, 4) for value in kept.tolist()] == [0.0, 0.6667, 0.0, 0.3333]
    kept = scores(p.log(), [SamplingParams(min_p=0.4, top_k=1)])
    assert kept.isfinite().tolist() == [[False, True, False, False]]


def test_penalties_have_the_published_form():
    """presence: once per token of the answer; frequency: per occurrence; repetition: divides positive, multiplies negative logits."""
    history = [3, 0, 0, 1]  # the prompt is [3]
    assert one([2.0, 1.5, 1.2, 5.0], history, 1, frequency_penalty=0.5, **GREEDY) == 3
    assert one([2.0, 1.5, 1.2, 0.0], history, 1, frequency_penalty=0.45, **GREEDY) == 2  # 1.1, 1.05, 1.2
    assert one([2.0, 1.5, 1.2, 0.0], history, 1, presence_penalty=0.45, **GREEDY) == 0  # 1.55, 1.05, 1.2
    assert one([2.0, 1.5, 1.2, 2.3], history, 1, repetition_penalty=2.0, **GREEDY) == 2  # 1.0, 0.75, 1.2, 1.15: the prompt counts
    assert one([-1.0, -1.5, -1.9, -1.2], history, 1, repetition_penalty=2.0, **GREEDY) == 2  # -2.0, -3.0, -1.9, -2.4


def test_bias_mask_and_minimum_length():
    assert one([0.0, 1.0, 2.0], logit_bias={0: 2.5}, **GREEDY) == 0
    assert one([0.0, 1.0, 2.0], logit_bias={7: 100.0}, **GREEDY) == 2
    mask = torch.tensor([True, True, False])
    assert one([0.0, 1.0, 2.0], mask=mask, logit_bias={2: 100.0}, **GREEDY) == 1
    assert one([0.0, 1.0, 2.0, 9.0], mask=mask, **GREEDY) == 1  # ids behind the mask are behind the tokenizer
    assert one([0.0, 1.0, 2.0], [5, 5], 1, stop_ids=(2,), min_tokens=2, **GREEDY) == 1
    assert one([0.0, 1.0, 2.0], [5, 5, 5], 1, stop_ids=(2,), min_tokens=2, **GREEDY) == 2
    only_end = torch.tensor([False, False, True])
    assert one([0.0, 1.0, 2.0], [5, 5], 1, mask=only_end, stop_ids=(2,), min_tokens=2, **GREEDY) == 2  # a complete grammar ends


def test_a_row_does_not_depend_on_its_neighbours():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(2))
    settings = [{"temperature": 0.0}, {"min_p": 0.2, "seed": 3}, {"frequency_penalty": 1.5, "seed": 4}, {"logit_bias": {5: 9.0}},
                {"top_k": 4, "logprobs": 2}]  # fmt: skip
    rows = [Draw(SamplingParams(**s), i, 9 - i, [1, 2, 2, i], 2) for i, s in enumerate(settings)]
    together = draw(logits, rows)
    for index, row in enumerate(rows):
        alone = draw(logits[index : index + 1], [row])
        assert alone.tokens.item() == together.tokens[index].item() and alone.logprobs[0] == together.logprobs[index]
    assert draw(logits[1:2], [rows[1]]).tokens.equal(sample(logits[1:2], [rows[1].params], [1], [8]))


def test_logprobs_are_the_models_own_whatever_the_filters():
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(5))
    made = Draw(SamplingParams(top_p=0.3, temperature=0.1, logprobs=5, logit_bias={0: 3.0}), 0, 0)
    found = draw(logits, [made], vocab_limit=10)
    entry, table = found.logprobs[0], logits[0, :10].double().log_softmax(-1)
    assert entry.token_id == found.tokens.item() and math.isclose(entry.logprob, table[entry.token_id], abs_tol=1e-12)
    assert [number for number, _ in entry.top] == table.topk(5).indices.tolist()
    assert [value for _, value in entry.top] == pytest.approx(table.topk(5).values.tolist())
    assert entry.rank == 1 + int((table > table[entry.token_id]).sum())
    every = token_logprobs(logits, [0], [99], vocab_limit=10)[0]
    assert len(every.top) == 10 and math.isclose(sum(math.exp(value) for _, value in every.top), 1.0)
    assert token_logprobs(logits, [4], [0])[0].top == ()


def test_impossible_tokens_are_left_out_and_ties_go_by_id():
    entry = token_logprobs(torch.tensor([[0.0, float("-inf"), 0.0]]), [2], [3])[0]
    assert [number for number, _ in entry.top] == [0, 2] and entry.rank == 2


def test_only_rows_that_asked_get_logprobs():
    rows = [Draw(SamplingParams(temperature=0), 0, 0), Draw(SamplingParams(temperature=0, logprobs=0), 0, 0)]
    found = draw(torch.zeros(2, 4), rows).logprobs
    assert found[0] is None and found[1] is not None and found[1].logprob == pytest.approx(-math.log(4))


def test_nan_is_an_error_in_every_path():
    with pytest.raises(NonFiniteError):
        one([0.0, float("nan")], **GREEDY)
    with pytest.raises(NonFiniteError):
        one([0.0, float("nan")], logit_bias={0: 1.0})
