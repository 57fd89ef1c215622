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
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fused_dropout
from fused_dropout._core import extension
from fused_dropout._tools.bench.devices import Device
from fused_dropout._tools.bench.harness import (
    OURS,
    Measured,
    Subject,
    load_warning,
    measure_interleaved,
    row_label,
)
from fused_dropout._tools.bench.report import Goal, Script, Setup, run_script
from fused_dropout._tools.common import thread_count

RESULTS = Path(__file__).parent / "results"
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
        PEER: eager_drop_path,
    }


def eager_drop_path(x: Tensor) -> Tensor:
    """As timm writes it."""
    shape = (x.shape[0],) + (1,) * (x.dim() - 1)
    return x.new_empty(shape).bernoulli_(1 - P).div_(1 - P) * x


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


def measure(
    case: Case,
    *,
    rounds: int,
    compiled: bool,
    device: Device,
    progress: Callable[[str], object],
) -> dict[str, Any]:
    """One case; `compiled` changes nothing, the peers here are not compiled."""
    subjects = [
        Subject(name, partial(_block, layer, case.shape, device.kind))
        for name, layer in case.layers(device.kind).items()
    ]
    measured = measure_interleaved(
        subjects,
        tuple(case.most),
        rounds=rounds,
        memory_phase="",  # none: hardly any is used
        device=device,
        progress=progress,
        replayed=(),
    )
    calls = {name: _per_call(block) for name, block in measured.subjects.items()}
    return {
        "form": case.text(),
        "device": device.kind,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "other_busy_cores": round(measured.other_busy_cores, 2),
        "phases": list(case.most),
        "rows": [_row(name, calls) for name in calls],
    }


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


def _per_call(block: Measured) -> Measured:
    timings = {
        phase: [seconds / CALLS for seconds in found] for phase, found in block.timings.items()
    }
    return replace(block, timings=timings)


def _row(name: str, calls: Mapping[str, Measured]) -> dict[str, Any]:
    least = {phase: min(timings) for phase, timings in calls[name].timings.items()}
    peers = calls[PEER].timings
    return {
        "name": name,
        "p": P,
        **calls[name].figures(),
        "least_microseconds": {phase: 1e6 * seconds for phase, seconds in least.items()},
        **{times_peer(phase): seconds / min(peers[phase]) for phase, seconds in least.items()},
    }


def times_peer(phase: str) -> str:
    """The key of a row's figure that goals are about."""
    return f"{phase}_times_peer"


def print_result(result: Mapping[str, Any], console: Console) -> None:
    """A table of one case, and a warning if the machine was busy."""
    table = Table("", title=result_title(result))
    for phase in result["phases"]:
        table.add_column(f"{phase}\nmicroseconds", justify="right")
        table.add_column(f"{phase}\ntimes peer", justify="right")
    for row in result["rows"]:
        cells = []
        for phase in result["phases"]:
            cells.append(f"{row['least_microseconds'][phase]:.2f}")
            cells.append(f"{row[times_peer(phase)]:.2f}x")
        table.add_row(row_label(row["name"], row["p"]), *cells)
    console.print(table)
    if warning := load_warning(result["other_busy_cores"]):
        console.print(warning, style="yellow")


def shape_text(result: Mapping[str, Any]) -> str:
    """Which measurement a goal is about."""
    return str(result["form"])


def result_title(result: Mapping[str, Any]) -> str:
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


def main(argv: Sequence[str] | None = None) -> int:
    script = Script(__doc__, SETUPS, RESULTS, print_result, shape_text, result_title)
    with thread_count(1):  # --threads asks for more
        return run_script(script, argv)


if __name__ == "__main__":
    sys.exit(main())
