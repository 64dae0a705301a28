"""Boundary of context and continuation, and windows over long texts (F40)."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from rorqual.errors import ConfigError, DataError
from rorqual.eval.encode import Encoder, fitted, windows

WORDS = {"Answer": 7805, ":": 28, " B": 406, " ": 223, "B": 36, "An": 901, "swer": 902}


class Greedy:
    """Longest match first over a handful of words, as in the field case; BOS is 0."""

    bos_id = 0
    decodes = property(lambda self: {number: word for word, number in WORDS.items()})

    def __init__(self, adds_bos: bool = False) -> None:
        self.adds_bos = adds_bos

    def encode(self, text: str) -> list[int]:
        ids = []
        while text:
            word = max((word for word in WORDS if text.startswith(word)), key=len)
            ids.append(WORDS[word])
            text = text[len(word) :]
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]


def _pair(context: str, continuation: str, adds_bos: bool = False) -> SimpleNamespace:
    (pair,) = Encoder(Greedy(adds_bos), eos_id=1).pairs([(context, continuation)])  # type: ignore[arg-type]
    return SimpleNamespace(context=pair.context, whole=pair.whole, shared=pair.shared)


def test_both_ways_of_cutting_give_the_joint_ids():
    assert _pair("Answer:", " B") == _pair("Answer: ", "B")
    pair = _pair("Answer: ", "B")
    assert (pair.context, pair.whole, pair.shared) == ([7805, 28], [7805, 28, 406], 2)


def test_exactly_one_bos():
    pair = _pair("Answer:", " B", adds_bos=True)
    assert (pair.context, pair.whole, pair.shared) == ([0, 7805, 28], [0, 7805, 28, 406], 3)


@pytest.mark.parametrize(("adds_bos", "first"), [(True, 0), (False, 1)])
def test_an_empty_context_is_the_start_of_a_document(adds_bos, first):
    pair = _pair("", "B", adds_bos)
    assert (pair.context, pair.whole, pair.shared) == ([first], [first, 36], 1)


def test_a_token_over_the_boundary_is_the_difference_of_two_sequences():
    pair = _pair("An", "swer:")
    assert (pair.context, pair.whole, pair.shared) == ([1, 901], [1, 7805, 28], 1)


def test_an_empty_continuation_is_refused():
    with pytest.raises(DataError, match="adds no token"):
        _pair("Answer:", "")


@pytest.mark.parametrize(("length", "window", "stride"), [(1000, 256, 128), (1000, 256, 256), (1000, 256, 1), (255, 256, 128), (256, 256, 7), (257, 256, 100), (3, 2, 1)])  # fmt: skip
def test_every_token_is_scored_once_with_all_the_context_that_fits(length, window, stride):
    ids = list(range(10, 10 + length))
    pieces = list(windows(ids, [1], window, stride))
    assert list(itertools.chain.from_iterable(tokens[start:] for tokens, start in pieces)) == ids
    assert all(len(tokens) - 1 <= window and start >= 1 for tokens, start in pieces)
    assert pieces[0][0][0] == 1 and all(start > window - stride for _, start in pieces[1:-1])
    everything = [1, *ids]
    for tokens, _ in pieces:
        place = everything.index(tokens[0])
        assert everything[place : place + len(tokens)] == tokens


def test_the_disjoint_form_is_lm_evals():
    """1,000 tokens in windows of 256: 256, 256, 256, 232 scored, each after one token."""
    pieces = list(windows(list(range(2, 1002)), [1], 256, 256))
    assert [(len(tokens) - start, start) for tokens, start in pieces] == [(256, 1), (256, 1), (256, 1), (232, 25)]


@pytest.mark.parametrize(("window", "stride"), [(8, 0), (8, 9), (1, 1)])
def test_windows_that_cannot_be_are_refused(window, stride):
    with pytest.raises(ConfigError, match="stride"):
        list(windows([2, 3], [1], window, stride))


def test_what_does_not_fit_loses_context_on_the_left_and_no_scored_token():
    tokens = list(range(30))
    assert fitted(tokens, 20, 29) == ([(tokens, 20)], False)
    assert fitted(tokens, 20, 16) == ([(tokens[13:], 7)], True)
    pieces, cut = fitted(tokens, 5, 8)
    assert cut and list(itertools.chain.from_iterable(t[s:] for t, s in pieces)) == tokens[5:]
    assert all(len(t) - 1 <= 8 and s >= 1 for t, s in pieces)
