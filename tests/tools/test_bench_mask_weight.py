"""bench/mask_weight.py compares what it says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.bench_scripts import script

from fused_dropout.functional import dropconnect_linear

bench = script("mask_weight")


@pytest.mark.parametrize("masks", [1, 4])
def test_the_eager_layer_computes_the_same(masks: int) -> None:
    """Dense where nothing is dropped; else a mask for each group of rows, of the same mean."""
    torch.manual_seed(0)
    rows, weight, bias = torch.randn(8, 5), torch.randn(3, 5), torch.randn(3)
    dense = F.linear(rows, weight, bias)
    torch.testing.assert_close(bench.eager_layer(rows, weight, bias, 0.0, masks), dense)
    alike = torch.ones(8, 2000)
    eager = bench.eager_layer(alike, torch.ones(30, 2000), torch.zeros(30), 0.5, masks)
    ours = dropconnect_linear(alike, torch.ones(30, 2000), None, 0.5, mask=8 // masks)
    for output in (eager, ours):
        groups = output.view(masks, -1, 30)
        assert torch.equal(groups, groups[:, :1].expand_as(groups))
        assert len(groups[:, 0].unique(dim=0)) == masks
        torch.testing.assert_close(output.mean(), torch.tensor(2000.0), rtol=0.05, atol=0)
