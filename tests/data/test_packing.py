"""Packing: the stream loses nothing, isolated samples share no target; term counts of field case F29."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rorqual.data.packing import IGNORE, Sample, pack_isolated, shifted, spans
from rorqual.errors import DataError

A, B = [1, 2, 3, 4, 5], [6, 7, 8, 9]


def test_isolated_packing_has_4_plus_3_terms_and_none_across_the_border() -> None:
    packed = pack_isolated([Sample(A), Sample(B)], window=12, pad_id=0)
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0]]
    assert packed.targets.tolist() == [[2, 3, 4, 5, -100, 7, 8, 9, -100, -100, -100, -100]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0, 0]]
    assert packed.segment_ids.tolist() == [[0] * 5 + [1] * 4 + [-1] * 3]
    assert packed.token_mask.sum() == 9
    assert packed.num_targets == 7


def test_pre_training_packing_has_8_terms() -> None:
    inputs, targets = shifted(np.array([A + B]))
    assert targets.size == inputs.size == 8
    assert (inputs[0, 4], targets[0, 4]) == (5, 6)  # the last token of A predicts the first of B


def test_window_borders() -> None:
    exact = pack_isolated([Sample(A)], window=5, pad_id=0)
    assert exact.input_ids.tolist() == [A] and exact.num_targets == 4
    dropped = pack_isolated([Sample(A), Sample(B)], window=4, pad_id=0)
    assert (dropped.dropped["too long"], dropped.samples, dropped.num_targets) == ([0], [[1]], 3)
    cut = pack_isolated([Sample(A), Sample(B)], window=4, pad_id=0, over_long="truncate")
    assert cut.input_ids.tolist() == [[1, 2, 3, 4], B]
    assert (cut.truncated, cut.num_targets) == ([0], 6)


def test_masked_tokens_are_no_targets_and_empty_samples_are_counted() -> None:
    packed = pack_isolated(
        [
            Sample(A, [False, False, False, True, True]),
            Sample([3]),
            Sample([]),
            Sample(B, [False] * 4),
            Sample(B, [True, False, False, False]),
        ],
        window=8,
        pad_id=0,
    )
    assert packed.targets.tolist() == [[-100, -100, 4, 5, -100, -100, -100, -100]]
    assert packed.dropped == {
        "too long": [],
        "no target": [1, 2, 3, 4],
    }  # of the last one only its first token is trained, which nothing predicts
    answer_cut_off = pack_isolated([Sample(A, [False] * 4 + [True])], window=4, pad_id=0, over_long="truncate")
    assert (answer_cut_off.dropped["no target"], answer_cut_off.truncated, answer_cut_off.input_ids.shape) == ([0], [], (0, 4))


def test_bad_input() -> None:
    with pytest.raises(DataError, match="sample 0 has 5 tokens but 2 training flags"):
        pack_isolated([Sample(A, [True, True])], window=8, pad_id=0)
    with pytest.raises(DataError, match=r"window \(1\) must be at least 2"):
        pack_isolated([Sample(A)], window=1, pad_id=0)


@given(st.lists(st.integers(0, 14), max_size=30), st.integers(2, 12))
def test_every_sample_is_whole_in_one_row(lengths: list[int], window: int) -> None:
    samples = [Sample([100 * i + j for j in range(n)]) for i, n in enumerate(lengths)]
    packed = pack_isolated(samples, window, pad_id=-7)
    out = [n for reason in packed.dropped.values() for n in reason]
    assert sorted(out + [n for row in packed.samples for n in row]) == list(range(len(samples)))
    for row, numbers in enumerate(packed.samples):
        assert numbers == sorted(numbers)
        for segment, number in enumerate(numbers):
            here = packed.segment_ids[row] == segment
            assert packed.input_ids[row, here].tolist() == list(samples[number].tokens)
            assert packed.positions[row, here].tolist() == list(range(len(samples[number].tokens)))
            assert packed.targets[row, here].tolist() == [*list(samples[number].tokens)[1:], IGNORE]
    assert packed.num_targets == sum(n - 1 for n in lengths if 2 <= n <= window)
    loads = [sum(lengths[n] for n in row) for row in packed.samples]
    assert all(a + lengths[row[0]] > window for a, row in zip(loads, packed.samples[1:], strict=False))  # first fit: it had no room before


@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.integers(1, 9))
def test_rows_of_a_stream_hold_it_once_and_whole(lengths: list[int], window: int) -> None:
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    covered = [
        (document, at)
        for first in range(0, int(starts[-1]), window)
        for document, low, high in spans(starts, first, first + window)
        for at in range(low, high)
    ]
    assert covered == [(document, at) for document, n in enumerate(lengths) for at in range(n)]


def test_isolated_rows_cost_what_the_samples_cost_alone() -> None:
    """F29 through the model: token-weighted loss of A and B run alone, and B's hidden states whatever A says."""
    import torch

    from rorqual.model.transformer import CausalLM
    from rorqual.train.loss import compute_loss
    from tests.tiny import t0

    model = CausalLM(t0())
    model.init_weights(0)

    def main_loss(samples: list[Sample], targets: int) -> tuple[float, np.ndarray]:
        packed = pack_isolated(samples, window=12, pad_id=0)
        fields = [torch.from_numpy(field) for field in (packed.input_ids, packed.targets, packed.segment_ids)]
        with torch.no_grad():
            loss = compute_loss(
                model, fields[0], fields[1], num_targets=targets, mtp_loss_weight=0.3, aux_loss_alpha=1e-4, segment_ids=fields[2]
            )
            hidden = model(fields[0], positions=torch.from_numpy(packed.positions), segment_ids=fields[2]).hidden
        return float(loss.main), hidden.numpy()

    both, hidden = main_loss([Sample(A), Sample(B)], 7)
    assert both == pytest.approx(main_loss([Sample(A)], 7)[0] + main_loss([Sample(B)], 7)[0], rel=1e-5)
    changed, other = main_loss([Sample([1, 2, 3, 4, 200]), Sample(B)], 7)
    assert changed != both
    # to the bit without routed experts (tests/train/test_loss.py); with them A's tokens change how many rows an expert's GEMM has
    np.testing.assert_allclose(hidden[0, 5:9], other[0, 5:9], rtol=1e-5, atol=1e-6)
    assert np.abs(hidden[0, 4] - other[0, 4]).max() > 1e-3
