"""Attention of rows of unequal lengths equals that of each row alone."""

from __future__ import annotations

import torch

from rorqual.eval.ragged import Ragged
from tests.eval import small


@torch.no_grad()
def test_rows_equal_each_row_alone():
    model = small.model()
    block = model.model.layers[0]
    lengths, width = [5, 3, 7], 7
    x = torch.randn(1, sum(lengths), model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    places = torch.cat([torch.arange(length) + row * width for row, length in enumerate(lengths)])
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    causal = Ragged(len(lengths), width, places, None)
    masked = Ragged(len(lengths), width, places, torch.ones(width, width, dtype=torch.bool).tril().expand(len(lengths), -1, -1))
    alone = [block.attend(part, model.context(torch.arange(part.shape[1]).unsqueeze(0)))[0] for part in x.split(lengths, dim=1)]
    expected, context = torch.cat(alone, dim=1), model.context(positions)
    for one in (causal, masked):
        torch.testing.assert_close(one.attend(block, x, context, None), expected, atol=1e-5, rtol=1e-5)
    kept = torch.tensor([4, 14])
    torch.testing.assert_close(causal.attend(block, x, context, kept), expected[:, kept], atol=1e-5, rtol=1e-5)
