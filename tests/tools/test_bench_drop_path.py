"""bench/drop_path.py measures what it says, on a problem small enough for a test."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from support.bench_scripts import script
from torch import Tensor

from fused_dropout.benchmark_devices import CPU
from fused_dropout.benchmark_report import goal_table

bench = script("drop_path")


@pytest.mark.parametrize("summed", [False, True])
def test_result(summed: bool) -> None:
    result = bench.measure(
        (4, 3, 2), "float32", summed,
        rounds=1, compiled=False, device=CPU, progress=lambda text: None,
    )  # fmt: skip
    assert [(row["name"], row["p"]) for row in result["rows"]] == [
        ("fused_dropout", 0.1), ("fused_dropout", 0.5), ("eager", 0.1), ("clone", None)
    ]  # fmt: skip
    shown = io.StringIO()
    bench.print_result(result, Console(file=shown, width=200))
    assert "fused_dropout p=0.5" in shown.getvalue()
    goals = [goal for goal in bench.GOALS if bench.CASES[goal.result][2] == summed]
    results = [result] * len(bench.CASES)
    assert all(goal.measured(results) > 0 for goal in goals)
    assert goal_table(goals, results, bench.shape_text).row_count == len(goals)


def test_every_case_has_its_goals() -> None:
    cases = [goal.result for goal in bench.GOALS]
    assert cases == [case for case in range(len(bench.CASES)) for _ in bench.PS]


@pytest.mark.parametrize("summed", [False, True])
def test_subjects_compute_the_same(summed: bool) -> None:
    """In the mean: every element of 20000 samples is 1 or 0 without its x."""
    torch.manual_seed(0)
    x, branch = torch.randn(20_000, 1), torch.ones(20_000, 1)

    def mean(layer) -> Tensor:
        return (layer(x, branch) - (x if summed else 0)).mean()

    for (_, p), layer in bench.layers(summed).items():
        # |z| < 6 fails by chance with probability 2e-9.
        assert abs(mean(layer) - 1) < 6 * (p / (1 - p) / 20_000) ** 0.5
