"""bench/drop_path.py compares what it says."""

from __future__ import annotations

import pytest
import torch
from support.bench_scripts import script
from torch import Tensor

bench = script("drop_path")


def test_every_case_has_its_goals() -> None:
    cases = [goal.result for goal in bench.GOALS]
    assert cases == [case for case in range(len(bench.CASES)) for _ in bench.PS]


@pytest.mark.parametrize("summed", [False, True])
def test_subjects_compute_the_same(summed: bool) -> None:
    """In the mean: every element of 20000 samples is 1 or 0 without its x."""
    torch.manual_seed(0)
    x, branch = torch.randn(20_000, 1), torch.ones(20_000, 1)

    def mean(layer) -> Tensor:
        return (layer(x, branch) - x if summed else layer(branch)).mean()

    for (_, p), layer in bench.layers(summed).items():
        # |z| < 6 fails by chance with probability 2e-9.
        assert abs(mean(layer) - 1) < 6 * (p / (1 - p) / 20_000) ** 0.5
