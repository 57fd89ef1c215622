"""Does dropout meet its goals here? Run: python bench/dropout.py

Measures 2^24 elements [16, 256, 64, 64] in fp32 and bf16: dropout in place, dropout forward and
backward, and dropout2d; with `--device cuda` also from 1 to 2^28 elements. `torch` is
torch.nn.functional's function of the same name, `copy` what moves the same bytes: `copy_` into a
warm tensor for the in-place form, `clone` of input (and gradient) for the others. "channels_last"
is dropout of a tensor in that memory format. `--save` writes all figures as JSON and a plot as PNG
to bench/results/. Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fused_dropout._tools.bench.columns import (
    Column,
    Result,
    Row,
    milliseconds,
    printed,
    shape_text,
    times,
)
from fused_dropout._tools.bench.devices import Device
from fused_dropout._tools.bench.harness import OURS, Key, Measured, measure_rows, relative
from fused_dropout._tools.bench.op import BenchOp, Calls, Layer
from fused_dropout._tools.bench.ops.channel_dropout import DROPOUT2D
from fused_dropout._tools.bench.ops.dropout import DROPOUT, DROPOUT_INPLACE, SHAPE, TORCH
from fused_dropout._tools.bench.report import Goal, Script, Setup, results_beside, run_script
from fused_dropout._tools.memory import kept_for_backward

IN_PLACE, TOTAL, CHANNELS = PHASES = ("in place", "total", "dropout2d")  # total: with backward
PS = (0.5, 0.1)
CHANNELS_LAST, COPY = "channels_last", "copy"
ROWS = [(OURS, p) for p in PS] + [(CHANNELS_LAST, p) for p in PS] + [(TORCH, PS[0]), (COPY, None)]
DTYPES = ("float32", "bfloat16")
SHAPES_ON_GPU = (
    (1, 1, 1, 1),
    (4, 16, 4, 4),
    (4, 64, 16, 16),
    (16, 64, 32, 32),
    SHAPE,
    (256, 256, 64, 64),
)


def measure(
    shape: tuple[int, ...], dtype: str, *, device: Device, **options: Any
) -> dict[str, Any]:
    """One shape and dtype; the peers here are not compiled."""
    prepare = _Calls(shape, dtype, device.kind)
    calls = {row: partial(prepare, *row) for row in ROWS}
    figures = partial(_figures, prepare)
    result = measure_rows(calls, PHASES, figures, device=device, replayed=PHASES, **options)
    return {"shape": list(shape), "dtype": dtype, **result}


class _Calls:
    """The same inputs for every subject; called with a row and a phase, returns what to time."""

    def __init__(self, shape: tuple[int, ...], dtype: str, device: str) -> None:
        self.contiguous = Calls(DROPOUT, shape, dtype, device)
        self.channels_last = Calls(DROPOUT, shape, dtype, device, CHANNELS_LAST)

    def __call__(self, name: str, p: float | None, phase: str) -> Callable[[], object]:
        calls = self._of(name)
        (input,), grad = calls.operands, calls.grad
        if name == COPY:
            if phase == IN_PLACE:
                target = input.clone()
                return lambda: target.copy_(input)
            return (lambda: (input.clone(), grad.clone())) if phase == TOTAL else input.clone
        layer = _layer(_ops(phase), name, p)
        if phase == TOTAL:
            return calls.of_layer(layer, TOTAL)
        operand = input.clone() if phase == IN_PLACE else input
        return lambda: layer(operand)

    def saved_bytes(self, name: str, p: float | None) -> int | None:
        """What forward keeps for backward."""
        if name == COPY:
            return None
        layer = _layer(DROPOUT, name, p)
        leaf = self._of(name).operands[0].detach().requires_grad_()
        return sum(tensor.nbytes for tensor in kept_for_backward(lambda: layer(leaf)))

    def _of(self, name: str) -> Calls:
        return self.channels_last if name == CHANNELS_LAST else self.contiguous


def _ops(phase: str) -> BenchOp:
    return {IN_PLACE: DROPOUT_INPLACE, TOTAL: DROPOUT, CHANNELS: DROPOUT2D}[phase]


def _layer(op: BenchOp, name: str, p: float | None) -> Layer:
    return op.peers[TORCH](p) if name == TORCH else op.ours(p)


def _figures(prepare: _Calls, key: Key, measured: Mapping[Key, Measured]) -> dict[str, Any]:
    name, p = key
    own, peer, copy = measured[key], measured[TORCH, PS[0]], measured[COPY, None]
    channels_last = measured.get((CHANNELS_LAST, p))
    return {
        "saved_bytes": prepare.saved_bytes(name, p),
        "times_copy": relative(own, copy, PHASES),
        "speedup_over_torch": relative(peer, own, PHASES),
        "channels_last_times_contiguous": channels_last and relative(channels_last, own, PHASES),
    }


def _column(phase: str) -> Column:
    parts = (
        milliseconds(phase),
        times("", "times_copy", phase),
        times("", "speedup_over_torch", phase),
    )
    heading = f"{phase}: ms,\ntimes copy,\nfaster than torch"
    return Column(heading, lambda row: "\n".join(part.cell(row) for part in parts))


def _saved(row: Row) -> str:
    return "-" if row["saved_bytes"] is None else f"{row['saved_bytes']} B"


def result_title(result: Result) -> str:
    """What a table or a plot is about."""
    return f"Dropout, {shape_text(result)}"


COLUMNS = [*map(_column, PHASES), Column("kept for\nbackward", _saved)]
print_result = printed(result_title, COLUMNS)
GOALS = [
    goal
    for number in range(len(DTYPES))
    for p in PS
    for goal in (
        Goal(number, p, "times_copy", at_most=2.5, phase=IN_PLACE),
        Goal(number, p, "speedup_over_torch", at_least=8, phase=TOTAL),
        Goal(number, p, "saved_bytes", at_most=16),
        Goal(number, p, "times_copy", at_most=1.3, phase=CHANNELS),
        Goal(number, p, "channels_last_times_contiguous", at_most=1.5, phase=IN_PLACE),
    )
]
ON_GPU = [(shape, dtype) for shape in SHAPES_ON_GPU for dtype in DTYPES]
GOALS_ON_GPU = [
    goal
    for number, (shape, _) in enumerate(ON_GPU)
    for p in PS
    for goal in (
        Goal(number, p, "speedup_over_torch", at_least=1, phase=TOTAL),
        # 92 % of the bandwidth that copying reaches.
        *[
            Goal(number, p, "times_copy", at_most=1 / 0.92, phase=phase)
            for phase in (IN_PLACE, TOTAL)
            if shape == SHAPES_ON_GPU[-1]
        ],
    )
]
SETUPS = {
    "cpu": Setup("dropout-", [partial(measure, SHAPE, dtype) for dtype in DTYPES], GOALS),
    "cuda": Setup("dropout-", [partial(measure, *case) for case in ON_GPU], GOALS_ON_GPU),
}


SCRIPT = Script(__doc__, SETUPS, results_beside(__file__), print_result, shape_text, result_title)
main = partial(run_script, SCRIPT)

if __name__ == "__main__":
    sys.exit(main())
