"""bench/call_overhead.py measures what it says."""

from __future__ import annotations

import pytest
import torch
from support.bench_scripts import script

from fused_dropout._tools.bench.devices import CPU
from fused_dropout._tools.bench.harness import Measured

bench = script("call_overhead")
CASES = pytest.mark.parametrize("case", bench.CASES, ids=bench.Case.text)


@CASES
def test_the_peer_is_its_own_measure(case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CALLS", 2)
    result = bench.measure(case, rounds=1, compiled=False, device=CPU, progress=lambda text: None)
    peer = result["rows"][1]
    assert peer["name"] == "peer"
    assert all(peer[bench.times_peer(phase)] == 1 for phase in case.most)
    assert sum(bench.CASES[goal.result] is case for goal in bench.GOALS) == len(case.most)


@CASES
def test_blocks_call_as_their_phase_says(case) -> None:
    """Each layer, with and without gradients, the right number of times."""
    calls = []

    def layer(x: torch.Tensor) -> torch.Tensor:
        calls.append((x.requires_grad, torch.is_grad_enabled()))
        assert x.shape == case.shape
        return x * 2

    wanted = {"forward": (False, True), "no_grad": (True, False), "total": (True, True)}
    for phase in case.most:
        calls.clear()
        bench._block(layer, case.shape, "cpu", phase)()
        assert calls == [wanted[phase]] * bench.CALLS


@CASES
def test_layers_take_the_shape_and_give_gradients(case) -> None:
    for layer in case.layers("cpu").values():
        x = torch.ones(case.shape, requires_grad=True)
        output = layer(x)
        assert output.shape == case.shape
        (grad,) = torch.autograd.grad(output.sum(), x)
        assert grad.shape == case.shape


def test_figures_are_the_least_of_all_rounds_for_one_call() -> None:
    timings = {"fused_dropout": [6.0, 3.0], "peer": [2.0, 4.0]}
    blocks = {
        (name, bench.P): Measured(timings={"forward": seconds}) for name, seconds in timings.items()
    }
    row = bench._figures(("fused_dropout", bench.P), blocks)
    assert row["forward_times_peer"] == 1.5
    assert row["least_microseconds"]["forward"] == pytest.approx(3e6 / bench.CALLS)
    assert row["seconds"]["forward"]["median"] == pytest.approx(4.5 / bench.CALLS)


@pytest.mark.parametrize(
    ("version", "most"), [("2.11.0+cu130", 1.7), ("2.13.0", 1.7), ("2.14.1", 1.5), ("3.0.0a0", 1.5)]
)
def test_the_goal_of_the_backward(version: str, most: float) -> None:
    assert bench.most_with_backward(version) == most


def test_one_thread_and_what_was_set_before(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(bench, "run_script", lambda *_: found.append(torch.get_num_threads()) or 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert bench.main([]) == 0
        assert (found, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)
