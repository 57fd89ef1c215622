"""bench/drop_block.py measures what it says, on problems small enough for a test."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from support.bench_scripts import script

from fused_dropout.benchmark_devices import CPU
from fused_dropout.benchmark_report import goal_table
from fused_dropout.drop_block_gamma import expected_drop_rate

bench = script("drop_block")
OPTIONS = {"rounds": 1, "compiled": False, "device": CPU, "progress": lambda text: None}


def shown(result: dict) -> str:
    text = io.StringIO()
    bench.print_result(result, Console(file=text, width=200))
    return text.getvalue()


def test_results_and_goals() -> None:
    results = [
        bench.measure(False, shape=(2, 3, 14, 14), **OPTIONS),
        bench.measure(True, shape=(2, 3, 14, 14), **OPTIONS),
        bench.measure_rates(elements=100_000, **OPTIONS),
    ]
    assert len(results) == len(bench.MEASUREMENTS)
    for result in results[:2]:
        assert "fused_dropout" in shown(result)
        for row in result["rows"]:
            assert row["note"] == "" or "pip install" in row["note"]
    assert "56 x 56" in shown(results[2])
    assert all(goal.measured(results) > 0 for goal in bench.GOALS)
    assert goal_table(bench.GOALS, results, bench.shape_text).row_count == len(bench.GOALS)


def test_subjects_drop_blocks_at_their_rates() -> None:
    torch.manual_seed(0)
    input = torch.ones(6000, 1, 14, 14)
    timm = 1 - (1 - bench._gamma(input)) ** _blocks_of_timm(14)
    expected = {
        bench.OWN_FORM: expected_drop_rate(bench._gamma(input), (14, 14), (7, 7)),
        bench.SHARED_FORM: timm.mean().item(),
    }
    expected[bench.OURS] = expected[bench.OWN_FORM]
    for share_channels in (False, True):
        for name, layer in bench.layers(share_channels).items():
            if name not in expected:
                continue
            output = layer(input)
            assert output.mean().item() == pytest.approx(1, rel=1e-4)
            rates = (output == 0).double().mean((1, 2, 3))
            # |z| < 6 fails by chance with probability 2e-9.
            assert abs(rates.mean() - expected[name]) < 6 * rates.std() / 6000**0.5, name


def _blocks_of_timm(size: int) -> torch.Tensor:
    """How many seeds drop an element, where each of the map's elements is one."""
    reached = torch.nn.functional.avg_pool1d(torch.ones(1, 1, size, dtype=torch.float64), 7, 1, 3)
    along = 7 * reached[0, 0]
    return along[:, None] * along
