"""Rows: the fullest sum by hand, every sample once, no target over a border, an order that only (seed, epoch) decides."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from rorqual.errors import DataError
from rorqual.posttrain import packing
from rorqual.posttrain.sft_data import Samples


def samples(*parts: tuple[list[int], list[bool]]) -> Samples:
    codes = [np.where(learned, ids, ~np.array(ids)) for ids, learned in parts]
    return Samples(np.concatenate(codes).astype(np.int32), np.cumsum([0, *map(len, codes)]).astype(np.int64))


def test_the_fullest_sum_by_hand():
    """10 is 5 + 3 + 2 and 8 + 2: the first begins earlier. Of 4, 4, 7 in a room of 10 two make 8; nothing fits into 1."""
    assert packing._fullest([5, 3, 8, 2], 10) == [0, 1, 3] and packing._fullest([4, 4, 7], 10) == [0, 1]
    assert packing._fullest([2, 3], 1) == [] and packing._fullest([], 5) == [] and packing._fullest([10, 1], 10) == [0]


def test_rows_are_filled_and_a_longer_sample_is_refused():
    assert sorted(map(sorted, packing.pack([5, 3, 8, 2, 7], 10))) == [[0, 1, 3], [2], [4]]
    assert sorted(packing.pack([10, 10], 10)) == [[0], [1]] and packing.pack([], 10) == []
    with pytest.raises(DataError, match="a sample of 11 tokens does not fit into rows of 10"):
        packing.pack([11], 10)


@pytest.mark.parametrize(("median", "width", "least"), [(90, 512, 0.999), (300, 4096, 0.99), (1500, 4096, 0.985)])
def test_every_sample_is_in_one_row_and_little_is_padding(median: int, width: int, least: float):
    draw = random.Random(0)
    lengths = [min(width, int(draw.lognormvariate(math.log(median), 0.8)) + 4) for _ in range(3000)]
    rows = packing.pack(lengths, width)
    assert sorted(number for row in rows for number in row) == list(range(3000))
    assert all(sum(lengths[number] for number in row) <= width for row in rows)
    assert sum(lengths) / (width * len(rows)) > least


@pytest.mark.parametrize("longer", [0, 1, 2])
def test_two_lengths_fill_rows_and_mix(longer: int):
    """Worked sums of 51 places and short ones of 29, as in the laptop recipe, or a little longer: no row has short ones alone."""
    lengths = np.array([51] * 600 + [29] * 300) + longer
    rows = packing.pack(lengths, 416)
    assert lengths.sum() / (416 * len(rows)) > 0.96
    assert all(min(row) < 600 for row in rows)


def test_rows_are_a_function_of_the_seed():
    lengths = [3 + 7 * number % 11 for number in range(200)]
    assert packing.pack(lengths, 40, 5) == packing.pack(lengths, 40, 5) != packing.pack(lengths, 40, 6)


def test_targets_end_with_their_sample():
    """Case F29: A of 5 tokens and B of 4 have 4 + 3 places and no target across the border; what is not learned is no target."""
    made = packing.fill(
        samples(([1, 2, 3, 4, 5], [False, False, True, True, True]), ([6, 7, 8, 9], [False, True, True, True])), [[0, 1], [1]], pad_id=2
    )
    assert made.input_ids.tolist() == [[1, 2, 3, 4, 6, 7, 8], [6, 7, 8, 2, 2, 2, 2]]
    assert made.targets.tolist() == [[-100, 3, 4, 5, 7, 8, 9], [7, 8, 9, -100, -100, -100, -100]]
    assert made.segment_ids.tolist() == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, -1, -1, -1, -1]]
    assert made.tokens == 10


def test_the_order_is_a_function_of_seed_and_epoch():
    first = packing.row_order(50, 3, 0)
    assert sorted(first.tolist()) == list(range(50)) and (first == packing.row_order(50, 3, 0)).all()
    assert (first != packing.row_order(50, 3, 1)).any() and (first != packing.row_order(50, 4, 0)).any()


def test_efficiency_is_the_share_of_places_with_a_token():
    two = samples(([1, 2, 3, 4, 5], [True] * 5), ([6, 7, 8, 9], [True] * 4))
    assert packing.efficiency(two, [[0, 1]], 10) == 0.7 and packing.efficiency(two, [], 10) == 1.0
