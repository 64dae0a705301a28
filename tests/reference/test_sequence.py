"""A sequence ends at a stop token or at its length, and at nothing else."""

from __future__ import annotations

from rorqual.inference.sampler import SamplingParams
from tests.reference.sequence import Sequence


def _sequence(max_length: int) -> Sequence:
    return Sequence(0, 0, [5, 6], 2, max_length, SamplingParams(), frozenset([1]))


def test_it_goes_on_until_a_stop_token():
    sequence = _sequence(9)
    assert [sequence.commit(7), sequence.commit(8), sequence.commit(1)] == [True, True, False]
    assert (sequence.output, sequence.finish_reason) == ([7, 8, 1], "stop")


def test_it_goes_on_until_its_length():
    sequence = _sequence(4)
    assert [sequence.commit(7), sequence.commit(8)] == [True, False]
    assert (sequence.output, sequence.finish_reason) == ([7, 8], "length")


def test_a_stop_token_in_the_last_place_is_a_stop():
    sequence = _sequence(3)
    assert not sequence.commit(1) and sequence.finish_reason == "stop"


def test_a_stop_token_in_the_prompt_ends_nothing():
    sequence = Sequence(0, 0, [1, 1], 2, 5, SamplingParams(), frozenset([1]))
    assert sequence.finish_reason is None and sequence.commit(3)
