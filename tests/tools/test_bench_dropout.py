"""bench/dropout.py measures what it says, on a problem small enough for a test."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from support.bench_scripts import script

from fused_dropout.benchmark_devices import CPU
from fused_dropout.benchmark_report import goal_table

bench = script("dropout")
SHAPE = (2, 3, 4, 5)


@pytest.fixture(scope="module")
def result() -> dict:
    return bench.measure(
        SHAPE, "bfloat16", rounds=1, compiled=False, device=CPU, progress=lambda text: None
    )


def test_result(result: dict) -> None:
    assert [(row["name"], row["p"]) for row in result["rows"]] == bench.ROWS
    assert [row["saved_bytes"] for row in result["rows"]] == [16, 16, 16, 16, 2 * 120, None]
    shown = io.StringIO()
    bench.print_result(result, Console(file=shown, width=120))
    assert "fused_dropout p=0.5" in shown.getvalue()


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_goal_is_about_a_figure(result: dict, kind: str) -> None:
    setup = bench.SETUPS[kind]
    results = [result] * len(setup.measurements)
    assert all(goal.measured(results) > 0 for goal in setup.goals)
    assert {goal.result for goal in setup.goals} == set(range(len(results)))
    assert goal_table(setup.goals, results, bench.shape_text).row_count == len(setup.goals)


def test_calls_do_what_their_phase_says() -> None:
    calls = bench._Calls(SHAPE, "float32", "cpu")
    for name, p in bench.ROWS:
        target = calls(name, p, bench.IN_PLACE)
        if name == bench.COPY:
            assert torch.equal(target(), calls.input)
            continue
        output = target()
        assert output is target(), "in place"
        (gradient,) = calls(name, p, bench.TOTAL)()
        factors = (gradient / calls.grad)[gradient != 0]
        torch.testing.assert_close(factors * (1 - p), torch.ones_like(factors), rtol=1e-4, atol=0)
        channels = calls(name, p, bench.CHANNELS)()
        assert torch.equal((channels != 0).any((2, 3)), (channels != 0).all(3).all(2))
        is_last = channels.is_contiguous(memory_format=torch.channels_last)
        assert is_last == (name == bench.CHANNELS_LAST)
