"""Sampling parameters: every bad value is refused with its field, spellings of the same request are the same."""

from __future__ import annotations

import pytest

from rorqual.errors import ConfigError
from rorqual.inference.params import SamplingParams, StructuredOutputs


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top_k", -1), ("top_k", 1.5), ("n", 0), ("max_tokens", 0), ("min_tokens", -1), ("logprobs", -1), ("prompt_logprobs", True),
        ("seed", 1.0), ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")), ("top_p", 0.0), ("top_p", 1.01),
        ("min_p", -0.1), ("min_p", 1.1), ("presence_penalty", 2.1), ("frequency_penalty", float("nan")), ("repetition_penalty", 0.0),
        ("logit_bias", {-1: 1.0}), ("logit_bias", {3: 101.0}), ("logit_bias", {"a": 1.0}), ("stop", ("",)), ("stop", ("x",) * 65),
        ("stop_token_ids", ("a",)),
    ],
)  # fmt: skip
def test_bad_values_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=field):
        SamplingParams(**{field: value})


def test_min_tokens_must_fit():
    with pytest.raises(ConfigError, match=r"min_tokens \(5\) must be at most max_tokens \(4\)"):
        SamplingParams(min_tokens=5, max_tokens=4)


def test_one_stop_string_is_a_list_of_one():
    assert SamplingParams(stop="END") == SamplingParams(stop=("END",)) == SamplingParams(stop=["END"])


def test_what_changes_logits_and_what_filters():
    assert not SamplingParams().adjusts and not SamplingParams().filters
    assert all(SamplingParams(**one).adjusts for one in ({"logit_bias": {1: 2.0}}, {"presence_penalty": 1}, {"frequency_penalty": -1},
                                                         {"repetition_penalty": 1.1}, {"min_tokens": 1}))  # fmt: skip
    assert all(SamplingParams(**one).filters for one in ({"top_k": 1}, {"top_p": 0.9}, {"min_p": 0.1}))
    assert not SamplingParams(top_k=1, temperature=0).filters


@pytest.mark.parametrize("given", [{}, {"json": {}, "regex": "a"}, {"choice": ()}, {"choice": "yes"}, {"choice": (1,)}])
def test_structured_outputs_take_exactly_one(given):
    with pytest.raises(ConfigError, match="exactly one|choice"):
        StructuredOutputs(**given)
