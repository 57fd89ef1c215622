"""Do drop_path and the fused residual sum meet their goals here? Run: python bench/drop_path.py

Measures the tokens of a ViT-B (128 x 197 x 768) and a map of a ResNet (32 x 64 x 56 x 56) in fp32
and bf16. `eager` is how timm and torchvision do it: a mask of one number per sample, a product, and
for the residual block a sum. The floor is `clone` of the same tensor, which moves the same bytes.
`--save` writes all figures as JSON and a plot as PNG to bench/results/. Exit status 1 if a goal is
missed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from fused_dropout._tools.bench import columns
from fused_dropout._tools.bench.columns import Result, milliseconds, printed, times
from fused_dropout._tools.bench.devices import Device
from fused_dropout._tools.bench.harness import OURS, Key, Measured, measure_rows, relative
from fused_dropout._tools.bench.op import PHASES, Calls, Layer
from fused_dropout._tools.bench.ops.drop_path import DROP_PATH, DROP_PATH_ADD, EAGER, MAP, SHAPE
from fused_dropout._tools.bench.report import Goal, Script, Setup, results_beside, run_script

PS = (0.1, 0.5)
CLONE = "clone"
SHAPES = (SHAPE, MAP)
DTYPES = ("float32", "bfloat16")


def layers(summed: bool) -> dict[tuple[str, float | None], Layer]:
    """What is measured, by name and p."""
    op = DROP_PATH_ADD if summed else DROP_PATH
    found: dict[tuple[str, float | None], Layer] = {(OURS, p): op.ours(p) for p in PS}
    found[EAGER, PS[0]] = op.peers[EAGER](PS[0])
    return found


def _clone(*operands: Tensor) -> Tensor:
    return operands[-1].clone()


def measure(
    shape: tuple[int, ...], dtype: str, summed: bool, *, device: Device, **options: Any
) -> dict[str, Any]:
    """One shape and form; the peers here are not compiled."""
    prepare = Calls(DROP_PATH_ADD if summed else DROP_PATH, shape, dtype, device.kind)
    subjects = {**layers(summed), (CLONE, None): _clone}
    calls = {key: partial(prepare.of_layer, layer) for key, layer in subjects.items()}
    return {
        "form": "x + drop_path(branch)" if summed else "drop_path(branch)",
        "shape": list(shape),
        "dtype": dtype,
        **measure_rows(calls, PHASES, _figures, device=device, **options),
    }


def _figures(key: Key, measured: Mapping[Key, Measured]) -> dict[str, Any]:
    own = measured[key]
    return {
        "times_clone": relative(own, measured[CLONE, None], ["forward"]),
        "speedup_over_eager": relative(measured[EAGER, PS[0]], own, PHASES),
    }


def shape_text(result: Result) -> str:
    """Which measurement a goal is about."""
    return f"{result['form']} {columns.shape_text(result)}"


def result_title(result: Result) -> str:
    """What a table or a plot is about."""
    return f"Stochastic depth, {shape_text(result)}"


COLUMNS = [
    *map(milliseconds, PHASES),
    times("forward\ntimes clone", "times_clone", "forward"),
    *(times(f"faster than\neager, {phase}", "speedup_over_eager", phase) for phase in PHASES),
]
print_result = printed(result_title, COLUMNS)
CASES = [(shape, dtype, summed) for summed in (False, True) for shape in SHAPES for dtype in DTYPES]
GOALS = [
    # One pass moves 3 tensors where two passes move 5; half of that gain is asked for.
    Goal(number, p, "speedup_over_eager", at_least=1.3)
    if summed
    else Goal(number, p, "times_clone", at_most=1.3, phase="forward")
    for number, (_, _, summed) in enumerate(CASES)
    for p in PS
]
MEASUREMENTS = [partial(measure, *case) for case in CASES]
SETUPS = {
    "cpu": Setup("drop-path-", MEASUREMENTS, GOALS),
    "cuda": Setup("drop-path-", MEASUREMENTS),
}


SCRIPT = Script(__doc__, SETUPS, results_beside(__file__), print_result, shape_text, result_title)
main = partial(run_script, SCRIPT)

if __name__ == "__main__":
    sys.exit(main())
