"""Does Gaussian inference meet its goals here? Run: python bench/dropconnect_gaussian.py

First the moments of `dropconnect_moments`, of one row and of more, beside what people write: the
layer on its operands and the layer on their squares (`two products`). Then `dropconnect_gaussian`
with 1000 samples and ReLU, beside what it stands for: the average over 1000 forward passes with
masks of their own. `masked` is 20 such passes in a row, and a ratio to 1000 is 50 times that to 20,
of the same round. `eager` draws all samples at once with torch.randn. `dense` is `F.linear`. All of
it without gradients, forward only. `--threads 1` and `--threads 2` have the same goals. `--save`
writes all figures as JSON and a plot as PNG to bench/results/. Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fused_dropout._tools.bench.columns import Result, milliseconds, printed, times
from fused_dropout._tools.bench.devices import Device
from fused_dropout._tools.bench.harness import (
    OURS,
    Key,
    Measured,
    Prepare,
    Spread,
    measure_rows,
    relative,
)
from fused_dropout._tools.bench.op import DENSE, FORWARD, Calls
from fused_dropout._tools.bench.ops.dropconnect_moments import (
    EAGER,
    GAUSSIAN,
    OP,
    TWO_PRODUCTS,
    two_products,
)
from fused_dropout._tools.bench.report import Goal, Script, Setup, results_beside, run_script
from fused_dropout.functional import dropconnect_linear, dropconnect_moments

P = 0.5
MASKED, SAMPLES, PASSES = "masked", 1000, 20
Shape = tuple[int, int, int]  # rows, output features, input features
MOMENTS: tuple[Shape, ...] = ((1, 1024, 1024), (8, 1024, 1024), (128, 1024, 1024))
LAYERS: tuple[Shape, ...] = (
    (1, 1024, 1024), (32, 1024, 1024), (1, 128, 1024), (32, 128, 1024),
)  # fmt: skip


def masked_passes(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The last of some forward passes, each with masks of its own."""
    for _ in range(PASSES):
        output = dropconnect_linear(input, weight, bias, P).relu()
    return output


def _dense(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(input, weight, bias).relu()


def _both_moments(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return dropconnect_moments(input, weight, bias, P).variance


def _both_products(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return two_products(input, weight, bias, P)[1]


def measure_moments(shape: Shape, *, device: Device, **options: Any) -> dict[str, Any]:
    """Mean and variance alone."""
    prepare = Calls(OP, shape, "float32", device.kind).of_layer
    calls: dict[Key, Prepare] = {
        (OURS, P): partial(prepare, _both_moments),
        (TWO_PRODUCTS, P): partial(prepare, _both_products),
        (DENSE, None): partial(prepare, _dense),
    }

    def figures(key: Key, measured: Mapping[Key, Measured]) -> dict[str, Any]:
        own = measured[key]
        return {
            "speedup_over_two_products": relative(measured[TWO_PRODUCTS, P], own, [FORWARD]),
            "times_dense": relative(own, measured[DENSE, None], [FORWARD]),
        }

    result = measure_rows(calls, [FORWARD], figures, device=device, memory_phase=FORWARD, **options)
    return {"what": "moments", "shape": list(shape), **result}


def measure_layer(shape: Shape, *, device: Device, **options: Any) -> dict[str, Any]:
    """The average of 1000 samples' activations."""
    prepare = Calls(GAUSSIAN, shape, "float32", device.kind).of_layer
    calls: dict[Key, Prepare] = {
        (OURS, P): partial(prepare, GAUSSIAN.ours(P)),
        (MASKED, P): partial(prepare, masked_passes),
        (EAGER, P): partial(prepare, GAUSSIAN.peers[EAGER](P)),
        (DENSE, None): partial(prepare, _dense),
    }

    def figures(key: Key, measured: Mapping[Key, Measured]) -> dict[str, Any]:
        own = measured[key]
        passes = relative(measured[MASKED, P], own, [FORWARD])
        return {
            "speedup_over_1000_passes": {
                phase: _times(SAMPLES / PASSES, spread) for phase, spread in passes.items()
            },
            "speedup_over_eager": relative(measured[EAGER, P], own, [FORWARD]),
        }

    result = measure_rows(calls, [FORWARD], figures, device=device, memory_phase=FORWARD, **options)
    return {"what": "1000 samples", "shape": list(shape), **result}


def _times(factor: float, spread: Spread | None) -> Any:
    return spread and {key: factor * value for key, value in spread.items()}


def shape_text(result: Result) -> str:
    """Which measurement a goal is about."""
    rows, outs, ins = result["shape"]
    return f"{result['what']}, {ins} to {outs} features, {rows} rows"


result_title = shape_text

COLUMNS = [
    milliseconds(FORWARD),
    times("faster than\ntwo products", "speedup_over_two_products", FORWARD),
    times("times dense", "times_dense", FORWARD),
    times("faster than\n1000 passes", "speedup_over_1000_passes", FORWARD),
    times("faster than\neager", "speedup_over_eager", FORWARD),
]
print_result = printed(result_title, COLUMNS)
MEASUREMENTS: list[Callable[..., dict[str, Any]]] = [
    *(partial(measure_moments, shape) for shape in MOMENTS),
    *(partial(measure_layer, shape) for shape in LAYERS),
]
FEW_ROWS = 8
FEWEST = {1024: 8, 128: 20}  # times faster than 1000 passes, by output features
GOALS = [
    *(
        Goal(number, P, "speedup_over_two_products", at_least=1, phase=FORWARD)
        for number, (rows, _, _) in enumerate(MOMENTS)
        if rows <= FEW_ROWS  # more are two of torch's products here too
    ),
    *(
        Goal(number, P, "speedup_over_1000_passes", at_least=FEWEST[outs], phase=FORWARD)
        for number, (_, outs, _) in enumerate(LAYERS, len(MOMENTS))
    ),
]
SETUPS = {
    "cpu": Setup("dropconnect-gaussian-", MEASUREMENTS, GOALS),
    "cuda": Setup("dropconnect-gaussian-", MEASUREMENTS),
}

SCRIPT = Script(__doc__, SETUPS, results_beside(__file__), print_result, shape_text, result_title)
main = partial(run_script, SCRIPT)

if __name__ == "__main__":
    sys.exit(main())
