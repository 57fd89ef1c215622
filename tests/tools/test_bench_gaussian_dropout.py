"""bench/gaussian_dropout.py measures what it says, on a problem small enough for a test."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from support.bench_scripts import script

from fused_dropout.benchmark_devices import CPU
from fused_dropout.benchmark_report import goal_table

bench = script("gaussian_dropout")


@pytest.mark.parametrize("dtype", bench.DTYPES)
@pytest.mark.parametrize("op", bench.OPS)
def test_result(op: str, dtype: str) -> None:
    result = bench.measure(
        op, dtype, 1000, rounds=1, compiled=False, device=CPU, progress=lambda text: None
    )
    assert [row["name"] for row in result["rows"]] == ["fused_dropout", "eager", "clone"]
    shown = io.StringIO()
    bench.print_result(result, Console(file=shown, width=200))
    assert f"{op}, 1000 elements, {dtype}" in shown.getvalue()
    results = [result] * len(bench.CASES)
    for setup in bench.SETUPS.values():
        assert all(goal.measured(results) > 0 for goal in setup.goals)
        table = goal_table(setup.goals, results, bench.shape_text)
        assert table.row_count == len(bench.CASES)


@pytest.mark.parametrize("op", bench.OPS)
def test_subjects_compute_the_same(op: str) -> None:
    """The mean of 200000 elements within 2 %, their variance within 3 %; the seed is fixed."""
    torch.manual_seed(0)
    second = torch.tensor(-2.0) if op == "concrete_dropout" else torch.full((200_000,), 0.25)
    ours, eager = (layer(torch.full((200_000,), 3.0), second) for layer in bench.OPS[op])
    torch.testing.assert_close(ours.mean(), eager.mean(), rtol=0.02, atol=0)
    torch.testing.assert_close(ours.var(), eager.var(), rtol=0.03, atol=0)
