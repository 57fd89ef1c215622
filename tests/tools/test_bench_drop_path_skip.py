"""bench/drop_path_skip.py compares what it says."""

from __future__ import annotations

import pytest
import torch
from support.bench_scripts import script

bench = script("drop_path_skip")


def test_every_case_has_its_goals() -> None:
    cases = [(goal.result, goal.p) for goal in bench.GOALS]
    assert cases == [(case, p) for case in range(len(bench.BLOCKS)) for p in bench.PS]
    assert all(goal.at_least >= 1 for goal in bench.GOALS)


@pytest.mark.parametrize("name", bench.BLOCKS)
def test_subjects_compute_the_same(name: str) -> None:
    """Without dropping all of them; with it those that draw the same masks."""
    shape = (3, *bench.BLOCKS[name][1][1:])
    block, x = bench.built(name, shape), torch.randn(shape)
    parameters = list(block.parameters())
    ways = (bench.OURS, bench.ZEROING, bench.FUSED_ZEROING, bench.DENSE)

    def output(way: str, p: float) -> torch.Tensor:
        torch.manual_seed(2)
        return bench.layer_of(block, bench.add_branch(way, p))(x, *parameters)

    dense = output(bench.DENSE, 0.0)
    for way in ways:
        torch.testing.assert_close(output(way, 0.0), dense)
    dropped = output(bench.OURS, 0.4)
    torch.testing.assert_close(dropped, output(bench.FUSED_ZEROING, 0.4))
    assert not torch.allclose(dropped, dense)
    assert (dropped == x).flatten(1).all(1).any() or name == "transformer block"
