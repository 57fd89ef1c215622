"""Masked weights, and layers whose rows share masks. Run: python bench/mask_weight.py

Measures `mask_weight` on 4096 x 4096 weights beside `F.dropout` and `clone`, which moves the same
bytes; then `dropconnect_linear` on 4096 rows of 1024 features, forward and all gradients, over the
number of rows that share a mask: 128 is `mask="example"` on [32, 128, 1024], 4096 is `"batch"`.
`dense` is `F.linear`. `eager` is what people write with as many masks: `F.linear` on
`F.dropout(weight)` for one, `torch.baddbmm` on masked copies of the weight for more; where these
copies would take more than 1 GiB it is left out. Layers get at most 7 rounds. `--save` writes all
figures as JSON and a plot as PNG to bench/results/. Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fused_dropout._tools.baselines import naive_shared_dropconnect_linear
from fused_dropout._tools.bench.columns import PEAK, Result, milliseconds, printed, times
from fused_dropout._tools.bench.devices import Device
from fused_dropout._tools.bench.harness import OURS, Key, Measured, Prepare, measure_rows, relative
from fused_dropout._tools.bench.op import DENSE, PHASES, Calls
from fused_dropout._tools.bench.ops import dropconnect, mask_weight
from fused_dropout._tools.bench.ops.dropout import TORCH
from fused_dropout._tools.bench.report import Goal, Script, Setup, results_beside, run_script

EAGER, CLONE = "eager", "clone"
PS = (0.5, 0.1)
WEIGHT = (4096, 4096)
LAYER = (4096, 1024, 1024)  # rows, output features, input features
GROUPS = (1, 4, 16, 32, 128, 512, 4096)  # rows that share a mask
MOST_COPIES = 1 << 30  # bytes of the eager layer's masked weights
MOST_ROUNDS = 7  # of a layer: one takes seconds


def measure_weight(
    shape: tuple[int, ...] = WEIGHT, dtype: str = "float32", *, device: Device, **options: Any
) -> dict[str, Any]:
    """One mask of a weight."""
    op = mask_weight.OP
    prepare = Calls(op, shape, dtype, device.kind).of_layer
    calls: dict[Key, Prepare] = {(CLONE, None): partial(prepare, Tensor.clone)}
    for p in PS:
        calls[OURS, p] = partial(prepare, op.ours(p))
        calls[EAGER, p] = partial(prepare, op.peers[TORCH](p))

    def figures(key: Key, measured: Mapping[Key, Measured]) -> dict[str, Any]:
        own, clone = measured[key], measured[CLONE, None]
        found = {"times_clone": relative(own, clone, ["forward"])}
        if key[1] is not None:
            found["speedup_over_eager"] = relative(measured[EAGER, key[1]], own, PHASES)
        return found

    result = measure_rows(calls, PHASES, figures, device=device, **options)
    return {"what": "weight", "shape": shape, "dtype": dtype, **result}


def measure_layer(
    group: int, shape: tuple[int, int, int] = LAYER, dtype: str = "float32",
    *, rounds: int, device: Device, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """A layer whose every `group` rows share a mask."""
    rows, outs, ins = shape
    masks = max(1, rows // group)
    op = dropconnect.OP
    prepare = Calls(op, shape, dtype, device.kind).of_layer
    calls: dict[Key, Prepare] = {(DENSE, None): partial(prepare, F.linear)}
    for p in PS:
        calls[OURS, p] = partial(prepare, op.ours(p, mask=group))
        if rows % masks == 0 and masks * outs * ins * 4 <= MOST_COPIES:
            eager = partial(naive_shared_dropconnect_linear, p=p, masks=masks)
            calls[EAGER, p] = partial(prepare, eager)

    def figures(key: Key, measured: Mapping[Key, Measured]) -> dict[str, Any]:
        own = measured[key]
        found = {"times_dense": relative(own, measured[DENSE, None], PHASES)}
        if (eager := measured.get((EAGER, key[1]))) is not None:
            found["speedup_over_eager"] = relative(eager, own, PHASES)
        return found

    rounds = min(rounds, MOST_ROUNDS)
    result = measure_rows(calls, PHASES, figures, rounds=rounds, device=device, **options)
    return {"what": f"layer, {group} rows to a mask", "shape": shape, "dtype": dtype, **result}


def shape_text(result: Result) -> str:
    """Which measurement a goal is about."""
    return f"{result['what']} {' x '.join(map(str, result['shape']))} {result['dtype']}"


result_title = shape_text

COLUMNS = [
    *map(milliseconds, PHASES),
    times("forward\ntimes clone", "times_clone", "forward"),
    times("total\ntimes dense", "times_dense", "total"),
    *(times(f"faster than\neager, {phase}", "speedup_over_eager", phase) for phase in PHASES),
    PEAK,
]
print_result = printed(result_title, COLUMNS)
MEASUREMENTS: list[Callable[..., dict[str, Any]]] = [
    measure_weight,
    *(partial(measure_layer, group) for group in GROUPS),
]
NUMBER = {group: k for k, group in enumerate(GROUPS, 1)}  # of the measurement
NOT_SLOWER = [
    Goal(NUMBER[group], p, "speedup_over_eager", at_least=1) for group in (32, 128, 512, 4096)
    for p in PS
]  # fmt: skip
GOALS = {
    "cpu": [
        Goal(0, 0.5, "speedup_over_eager", at_least=1),
        Goal(NUMBER[128], 0.5, "times_dense", at_most=1.3),
        Goal(NUMBER[4096], 0.5, "times_dense", at_most=1.1),
        *NOT_SLOWER,
    ],
    "cuda": [Goal(0, 0.5, "speedup_over_eager", at_least=1)],
}
SETUPS = {device: Setup("mask-weight-", MEASUREMENTS, goals) for device, goals in GOALS.items()}

SCRIPT = Script(__doc__, SETUPS, results_beside(__file__), print_result, shape_text, result_title)
main = partial(run_script, SCRIPT)

if __name__ == "__main__":
    sys.exit(main())
