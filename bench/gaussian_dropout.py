"""Are the ops on continuous noise faster than eager PyTorch? Run: python bench/gaussian_dropout.py

Measures Gaussian dropout, Gaussian noise of given mean and variance, and concrete dropout with a
learned p on 16.7 M elements in fp32 and bf16. `eager` is the plain composition of torch's
operators. `clone` moves the bytes of one input and one output. `--save` writes all figures as JSON
and a plot as PNG to bench/results/. Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from fused_dropout._tools.bench.columns import PEAK, Result, milliseconds, printed, times
from fused_dropout._tools.bench.devices import Device
from fused_dropout._tools.bench.harness import OURS, Key, Measured, Prepare, measure_rows, relative
from fused_dropout._tools.bench.op import PHASES, Calls, Layer
from fused_dropout._tools.bench.ops import concrete_dropout, gaussian_dropout, gaussian_noise
from fused_dropout._tools.bench.ops.gaussian_dropout import EAGER, ELEMENTS
from fused_dropout._tools.bench.report import Goal, Script, Setup, results_beside, run_script

CLONE = "clone"
DTYPES = ("float32", "bfloat16")
OPS = {op.name: op for op in (gaussian_dropout.OP, gaussian_noise.OP, concrete_dropout.OP)}


def layers(name: str) -> tuple[Layer, Layer]:
    """Ours and eager PyTorch's."""
    op = OPS[name]
    return op.ours(op.p), op.peers[EAGER](op.p)


def _clone(input: Tensor, *others: Tensor) -> Tensor:
    return input.clone()


def measure(
    op: str, dtype: str, elements: int = ELEMENTS, *, device: Device, **options: Any
) -> dict[str, Any]:
    """One op and dtype; the peers here are not compiled."""
    ours, eager = layers(op)
    prepare = Calls(OPS[op], (elements,), dtype, device.kind)
    calls: dict[Key, Prepare] = {
        (name, None): partial(prepare.of_layer, layer)
        for name, layer in {OURS: ours, EAGER: eager, CLONE: _clone}.items()
    }
    result = measure_rows(calls, PHASES, _figures, device=device, **options)
    return {"op": op, "elements": elements, "dtype": dtype, **result}


def _figures(key: Key, measured: Mapping[Key, Measured]) -> dict[str, Any]:
    own, eager, clone = (measured[name, None] for name in (key[0], EAGER, CLONE))
    return {
        "speedup_over_eager": relative(eager, own, PHASES),
        "times_clone": relative(own, clone, ["forward"]),
    }


def shape_text(result: Result) -> str:
    """Which measurement a goal is about."""
    return "{op} {elements} {dtype}".format_map(result)


def result_title(result: Result) -> str:
    """What a table or a plot is about."""
    return "{op}, {elements} elements, {dtype}".format_map(result)


COLUMNS = [
    *map(milliseconds, PHASES),
    *(times(f"faster than\neager, {phase}", "speedup_over_eager", phase) for phase in PHASES),
    times("forward\ntimes clone", "times_clone", "forward"),
    PEAK,
]
print_result = printed(result_title, COLUMNS)
CASES = [(op, dtype) for op in OPS for dtype in DTYPES]
MEASUREMENTS = [partial(measure, *case) for case in CASES]
# On the CPU torch draws normals on one core, and its concrete dropout takes a dozen passes. A GPU
# is limited by the arithmetic of the noise, which the eager forms need as well.
AT_LEAST = {
    "cpu": {"gaussian_dropout": 4, "gaussian_noise": 4, "concrete_dropout": 8},
    "cuda": {"gaussian_dropout": 1, "gaussian_noise": 1, "concrete_dropout": 2},
}


def goals(device: str) -> list[Goal]:
    """One for each case, of the forward and backward pass together."""
    return [
        Goal(number, None, "speedup_over_eager", at_least=AT_LEAST[device][op])
        for number, (op, _) in enumerate(CASES)
    ]


SETUPS = {device: Setup("gaussian-dropout-", MEASUREMENTS, goals(device)) for device in AT_LEAST}


SCRIPT = Script(__doc__, SETUPS, results_beside(__file__), print_result, shape_text, result_title)
main = partial(run_script, SCRIPT)

if __name__ == "__main__":
    sys.exit(main())
