"""bench/bias_act_dropout_add.py measures what it says, on a problem small enough for a test."""

from __future__ import annotations

import io

import torch
from rich.console import Console
from support.bench_scripts import script

from fused_dropout.benchmark_devices import CPU
from fused_dropout.benchmark_report import goal_table

bench = script("bias_act_dropout_add")


def test_result() -> None:
    result = bench.measure(
        (4, 3, 8), "float32", rounds=1, compiled=False, device=CPU, progress=lambda text: None
    )
    names = ["fused_dropout", "eager", "copy_"]
    assert [row["name"] for row in result["rows"]] == names
    shown = io.StringIO()
    bench.print_result(result, Console(file=shown, width=200))
    assert all(name in shown.getvalue() for name in names)
    for setup in bench.SETUPS.values():
        results = [result] * len(setup.measurements)
        assert all(goal.measured(results) > 0 for goal in setup.goals)
        assert goal_table(setup.goals, results, bench.shape_text).row_count == len(setup.goals)


def test_subjects_compute_the_same() -> None:
    """In the mean over 20000 rows, whose standard error is (p / (1 - p) / 20000)^0.5 times gelu."""
    torch.manual_seed(0)
    input, bias, residual = torch.randn(1, 5), torch.randn(5), torch.randn(1, 5)
    wide = [tensor.expand(20_000, 5) for tensor in (input, residual)]
    expected = torch.nn.functional.gelu(input + bias) + residual
    # |z| < 6 fails by chance with probability 2e-9, ten times.
    bound = 6 * (bench.P / (1 - bench.P) / 20_000) ** 0.5 * (expected - residual).abs() + 1e-4
    for layer in (bench.fused, bench.eager):
        assert ((layer(wide[0], bias, wide[1]).mean(0) - expected).abs() <= bound).all()
