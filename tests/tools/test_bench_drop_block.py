"""bench/drop_block.py compares what it says."""

from __future__ import annotations

import pytest
import torch
from support.bench_scripts import script

from fused_dropout._core.drop_block_gamma import expected_drop_rate, paper_gamma

bench = script("drop_block")


def test_subjects_drop_blocks_at_their_rates() -> None:
    torch.manual_seed(0)
    input = torch.ones(6000, 1, 14, 14)
    seeds = paper_gamma(bench.P, (14, 14), (7, 7))
    timm = 1 - (1 - seeds) ** _blocks_of_timm(14)
    expected = {
        bench.OWN_FORM: expected_drop_rate(seeds, (14, 14), (7, 7)),
        bench.SHARED_FORM: timm.mean().item(),
    }
    expected[bench.OURS] = expected[bench.OWN_FORM]
    for share_channels in (False, True):
        for name, layer_at in bench.layers(share_channels).items():
            if name not in expected:
                continue
            output = layer_at(bench.P)(input)
            assert output.mean().item() == pytest.approx(1, rel=1e-4)
            rates = (output == 0).double().mean((1, 2, 3))
            # |z| < 6 fails by chance with probability 2e-9.
            assert abs(rates.mean() - expected[name]) < 6 * rates.std() / 6000**0.5, name


def _blocks_of_timm(size: int) -> torch.Tensor:
    """How many seeds drop an element, where each of the map's elements is one."""
    reached = torch.nn.functional.avg_pool1d(torch.ones(1, 1, size, dtype=torch.float64), 7, 1, 3)
    along = 7 * reached[0, 0]
    return along[:, None] * along
