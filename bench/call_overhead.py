"""What does a call cost where there is little to compute? Run: python bench/call_overhead.py

Times dropout of 1 and 1000 elements, drop_path of 1 and 1000 samples of one element and a
DropConnect layer with 8 features against torch's and timm's forms, on one CPU thread: Python, the
dispatcher and autograd are most of what is measured. `operator` is the raw operator with a random
state that is there already. A timing is a block of 100 calls, so that contexts are entered once,
and on a GPU, where kernels this small wait for the CPU, the time to queue calls is what shows.
Figures are the least of all rounds: nothing makes a call take less than it does. `--save` writes
all figures as JSON and a plot as PNG to bench/results/. Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import fused_dropout
from fused_dropout._core import extension
from fused_dropout._tools.bench.columns import Column, Result, Row, print_remarks, result_table
from fused_dropout._tools.bench.devices import Device
from fused_dropout._tools.bench.harness import OURS, Key, Measured, Prepare, measure_rows
from fused_dropout._tools.bench.ops.drop_path import eager_drop_path
from fused_dropout._tools.bench.report import Goal, Script, Setup, results_beside, run_script
from fused_dropout._tools.common import thread_count

if TYPE_CHECKING:
    from rich.console import Console

CALLS = 100  # in a block
P = 0.5
PEER, OPERATOR = "peer", "operator"
# Without gradients; the same for operands that require them; forward and backward.
FORWARD, NO_GRAD, TOTAL = "forward", "no_grad", "total"

Layer = Callable[[Tensor], Tensor]


def dropouts(device: str) -> dict[str, Layer]:
    """The functions, and the operator behind ours."""
    state = fused_dropout.make_rng_state(0, device="cpu")  # a kernel gets it by value
    operator = extension.operators().dropout
    return {
        OURS: partial(fused_dropout.functional.dropout, p=P),
        PEER: partial(nn.functional.dropout, p=P),
        OPERATOR: lambda x: operator(x, None, state, P, 1 / (1 - P)),
    }


def dropout_modules(device: str) -> dict[str, Layer]:
    return {OURS: fused_dropout.nn.Dropout(P), PEER: nn.Dropout(P)}


def drop_paths(device: str) -> dict[str, Layer]:
    return {
        OURS: partial(fused_dropout.functional.drop_path, drop_prob=P, training=True),
        PEER: partial(eager_drop_path, p=P),
    }


def linears(device: str) -> dict[str, Layer]:
    ours = fused_dropout.nn.DropConnectLinear(8, 8, p=P, device=device)
    return {OURS: ours, PEER: nn.Linear(8, 8, device=device)}


@dataclass(frozen=True)
class Case:
    """One table: layers of one kind on one shape."""

    name: str
    shape: tuple[int, ...]
    layers: Callable[[str], dict[str, Layer]]  # on a device, by name
    most: Mapping[str, float]  # by phase, the goal: so many times the peer

    def text(self) -> str:
        return f"{self.name} of {list(self.shape)}"


def most_with_backward(torch_version: str) -> float:
    """torch 2.14 spends less on a Function's backward."""
    major, minor = torch_version.split(".")[:2]
    return 1.5 if (int(major), int(minor)) >= (2, 14) else 1.7


BACKWARD = most_with_backward(torch.__version__)
OF_DROPOUT = {FORWARD: 1.5, NO_GRAD: 1.5, TOTAL: BACKWARD}
OF_DROP_PATH = {FORWARD: 1.5, TOTAL: BACKWARD}
CASES = (
    Case("dropout", (1,), dropouts, OF_DROPOUT),
    Case("dropout", (1000,), dropouts, OF_DROPOUT),
    Case("nn.Dropout", (1,), dropout_modules, OF_DROPOUT),
    Case("nn.Dropout", (1000,), dropout_modules, OF_DROPOUT),
    Case("drop_path", (1, 1), drop_paths, OF_DROP_PATH),
    Case("drop_path", (1000, 1), drop_paths, OF_DROP_PATH),
    Case("DropConnectLinear(8, 8)", (4, 8), linears, {NO_GRAD: 2.5}),
)


def measure(case: Case, *, device: Device, **options: Any) -> dict[str, Any]:
    """One case; the peers here are not compiled."""
    calls: dict[Key, Prepare] = {
        (name, P): partial(_block, layer, case.shape, device.kind)
        for name, layer in case.layers(device.kind).items()
    }
    result = measure_rows(
        calls, tuple(case.most), _figures, device=device, replayed=(),
        memory_phase="",  # none: hardly any is used
        **options,
    )  # fmt: skip
    facts = {"form": case.text(), "threads": torch.get_num_threads(), "phases": list(case.most)}
    return {**facts, **result}


def _block(
    layer: Layer, shape: tuple[int, ...], device: str, phase: str
) -> Callable[[], Tensor | None]:
    """What a phase times."""
    x = torch.ones(shape, device=device, requires_grad=phase != FORWARD)
    grad = torch.ones_like(x)

    def call() -> None:
        with torch.no_grad() if phase == NO_GRAD else nullcontext():
            for _ in range(CALLS):
                layer(x)

    def call_and_backward() -> None:
        for _ in range(CALLS):
            torch.autograd.grad(layer(x), x, grad)

    return call_and_backward if phase == TOTAL else call


def _figures(key: Key, blocks: Mapping[Key, Measured]) -> dict[str, Any]:
    """Of one call, where what was measured are blocks."""
    own, peer = blocks[key].timings, blocks[PEER, P].timings
    calls = {phase: [seconds / CALLS for seconds in timings] for phase, timings in own.items()}
    return {
        **replace(blocks[key], timings=calls).figures(),
        "least_microseconds": {phase: 1e6 * min(timings) for phase, timings in calls.items()},
        **{times_peer(phase): min(own[phase]) / min(peer[phase]) for phase in own},
    }


def times_peer(phase: str) -> str:
    """The key of a row's figure that goals are about."""
    return f"{phase}_times_peer"


def _columns(phase: str) -> tuple[Column, Column]:
    def microseconds(row: Row) -> str:
        return f"{row['least_microseconds'][phase]:.2f}"

    def ratio(row: Row) -> str:
        return f"{row[times_peer(phase)]:.2f}x"

    return Column(f"{phase}\nmicroseconds", microseconds), Column(f"{phase}\ntimes peer", ratio)


def print_result(result: Result, console: Console) -> None:
    """A table of one case."""
    columns = [column for phase in result["phases"] for column in _columns(phase)]
    console.print(result_table(result, result_title(result), columns))
    print_remarks(result, console)


def shape_text(result: Result) -> str:
    """Which measurement a goal is about."""
    return str(result["form"])


def result_title(result: Result) -> str:
    """What a table or a plot is about."""
    return f"A call of {shape_text(result)}, threads: {result['threads']}, least of all rounds"


GOALS = [
    Goal(number, P, times_peer(phase), at_most=most)
    for number, case in enumerate(CASES)
    for phase, most in case.most.items()
]
MEASUREMENTS = [partial(measure, case) for case in CASES]
SETUPS = {
    "cpu": Setup("call-overhead-", MEASUREMENTS, GOALS),
    "cuda": Setup("call-overhead-", MEASUREMENTS),
}


SCRIPT = Script(__doc__, SETUPS, results_beside(__file__), print_result, shape_text, result_title)


def main(argv: Sequence[str] | None = None) -> int:
    with thread_count(1):  # --threads asks for more
        return run_script(SCRIPT, argv)


if __name__ == "__main__":
    sys.exit(main())
