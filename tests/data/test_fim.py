"""FIM: every token of the document once, in PSM order, at the rate asked for, as a function of its key alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rorqual.data.fim import ADDED_TOKENS, Fim, FimTokens, parts

TOKENS = FimTokens(begin=901, hole=900, end=902)


def assemble(document: list[int], cuts: tuple[int, int]) -> list[int]:
    out: list[int] = []
    for part in parts(len(document), cuts, TOKENS):
        out += [part] if isinstance(part, int) else document[part[0] : part[1]]
    return out


def test_order_is_prefix_suffix_middle() -> None:
    assert assemble([1, 2, 3, 4, 5], (1, 3)) == [901, 1, 900, 4, 5, 902, 2, 3]
    assert assemble([1, 2, 3], (0, 0)) == [901, 900, 1, 2, 3, 902]
    assert assemble([1, 2, 3], (0, 3)) == [901, 900, 902, 1, 2, 3]


@given(st.lists(st.integers(0, 800), min_size=3, max_size=40), st.integers(0, 50), st.integers(0, 10**6))
def test_the_document_can_be_put_together_again(document: list[int], epoch: int, number: int) -> None:
    out = assemble(document, Fim(7, "code", epoch, 1.0).cuts(number, len(document)))
    assert len(out) == len(document) + ADDED_TOKENS
    hole, end = out.index(900), out.index(902)
    assert out[0] == 901 and hole < end
    assert out[1:hole] + out[end + 1 :] + out[hole + 1 : end] == document


def test_rate_and_short_documents() -> None:
    lengths = np.full(50_000, 9)
    lengths[::2] = 2
    picks = Fim(0, "code", 0, 0.1).selected(lengths)
    assert abs(picks[1::2].mean() - 0.1) < 0.006
    assert not picks[::2].any()
    assert not Fim(0, "code", 0, 0.0).selected(lengths).any()
    assert Fim(0, "code", 0, 1.0).selected(np.array([3, 2, 100])).tolist() == [True, False, True]


def test_choices_follow_their_key_only() -> None:
    lengths = np.full(1000, 9)
    base = Fim(0, "code", 0, 0.1)
    assert (base.selected(lengths)[:500] == base.selected(lengths[:500])).all()
    for other in (Fim(1, "code", 0, 0.1), Fim(0, "prose", 0, 0.1), Fim(0, "code", 1, 0.1)):
        assert (other.selected(lengths) != base.selected(lengths)).sum() > 100
        assert [other.cuts(i, 10**6) for i in range(5)] != [base.cuts(i, 10**6) for i in range(5)]


def test_cuts_are_two_uniform_places_sorted() -> None:
    cuts = np.array([Fim(0, "code", 0, 1.0).cuts(i, 1000) for i in range(3000)])
    assert (cuts[:, 0] <= cuts[:, 1]).all() and cuts.min() >= 0 and cuts.max() <= 1000
    assert abs(cuts[:, 0].mean() - 1000 / 3) < 15 and abs(cuts[:, 1].mean() - 2000 / 3) < 15
