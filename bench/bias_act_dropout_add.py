"""Does the transformer epilogue meet its goals here? Run: python bench/bias_act_dropout_add.py

Measures residual + dropout(gelu(input + bias)) on 8 x 1024 x 3072 (a batch of sequences in GPT's
feed-forward block) in fp32 and bf16, against the same in eager PyTorch and under torch.compile. The
floor is the bytes that must move, three tensors forward (input, residual, output) and three
backward (gradient, input, its gradient), at the rate of a warm `copy_` of one such tensor.
`--threads 1` gives steadier ratios on a machine that is shared. `--save` writes all figures as JSON
and a plot as PNG to bench/results/. Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._functorch import config as functorch_config
from torch.nn import functional as F

from fused_dropout._tools.bench.devices import Device
from fused_dropout._tools.bench.harness import (
    OURS,
    Measured,
    Spread,
    Subject,
    load_warning,
    measure_interleaved,
    ratio,
    spread,
)
from fused_dropout._tools.bench.report import Goal, Script, Setup, run_script
from fused_dropout.functional import bias_act_dropout_add

RESULTS = Path(__file__).parent / "results"
SHAPE = (8, 1024, 3072)
P = 0.1
EAGER, COMPILED, COPY = "eager", "compiled eager", "copy_"
# Tensors that a phase must read or write; copy_ moves two.
TENSORS = {"forward": 3, "backward": 3, "total": 6}
PHASES = tuple(TENSORS)

Layer = Callable[[Tensor, Tensor, Tensor], Tensor]  # input, bias, residual


def eager(input: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """What is fused, in PyTorch."""
    return F.dropout(F.gelu(input + bias), P) + residual


def fused(input: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """The same by this package."""
    return bias_act_dropout_add(input, bias, residual, P, "gelu")


def measure(
    shape: tuple[int, ...],
    dtype: str,
    *,
    rounds: int,
    compiled: bool,
    device: Device,
    progress: Callable[[str], object],
) -> dict[str, Any]:
    """One shape and dtype; a result as `run_script` wants it."""
    layers: dict[str, Layer] = {OURS: fused, EAGER: eager}
    if compiled:
        torch.compiler.reset()
        layers[COMPILED] = torch.compile(eager, dynamic=False)
    calls = Calls(shape, dtype, device.kind)
    subjects = [
        Subject(name, partial(calls.of_layer, layer), may_fail=name == COMPILED)
        for name, layer in layers.items()
    ]
    subjects.append(Subject(COPY, calls.of_copy))
    # torch.compile otherwise frees buffers that repeated backward passes over one graph need.
    with functorch_config.patch(donated_buffer=False):
        measured = measure_interleaved(
            subjects, PHASES, rounds=rounds, memory_phase="total", device=device, progress=progress
        )
    return {
        "shape": list(shape),
        "dtype": dtype,
        "device": device.kind,
        "rounds": rounds,
        "other_busy_cores": round(measured.other_busy_cores, 2),
        "rows": [_row(subject.name, measured.subjects) for subject in subjects],
    }


class Calls:
    """The same tensors for every subject; called with a phase, returns what to time."""

    def __init__(self, shape: tuple[int, ...], dtype: str, device: str) -> None:
        draw = torch.Generator().manual_seed(0)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=draw).to(device, getattr(torch, dtype))

        self.input, self.bias, self.residual = normal(*shape), normal(shape[-1]), normal(*shape)
        self.grad = normal(*shape)

    def of_layer(self, layer: Layer, phase: str) -> Callable[[], object]:
        leaves = [t.detach().requires_grad_() for t in (self.input, self.bias, self.residual)]
        if phase == "forward":
            return lambda: layer(*leaves)
        if phase == "total":
            return lambda: torch.autograd.grad(layer(*leaves), leaves, self.grad)
        output = layer(*leaves)
        return lambda: torch.autograd.grad(output, leaves, self.grad, retain_graph=True)

    def of_copy(self, phase: str) -> Callable[[], object]:
        target = torch.empty_like(self.input)
        return lambda: target.copy_(self.input)


def _row(name: str, subjects: Mapping[str, Measured]) -> dict[str, Any]:
    own = subjects[name]

    def speedup_over(peer: str) -> dict[str, Spread | None] | None:
        if name in (peer, COPY) or peer not in subjects or subjects[peer].note or own.note:
            return None
        return {p: spread(ratio(subjects[peer].seconds[p], own.seconds[p])) for p in PHASES}

    def times_floor(phase: str) -> Spread | None:
        if name == COPY or phase not in own.seconds:
            return None
        shares = ratio(own.seconds[phase], subjects[COPY].seconds[phase])
        return spread([share and share * 2 / TENSORS[phase] for share in shares])

    return {
        "name": name,
        "p": None if name == COPY else P,
        **own.figures(),
        "speedup_over_eager": speedup_over(EAGER),
        "speedup_over_compiled": speedup_over(COMPILED),
        "times_floor": {phase: times_floor(phase) for phase in PHASES},
    }


def print_result(result: Mapping[str, Any], console: Console) -> None:
    """A table of one shape and dtype, and a warning if the machine was busy."""
    table = Table("", title=result_title(result))
    headings = [*(f"{phase}\nms" for phase in PHASES), "peak\nextra MiB"]
    headings += [f"{phase}\ntimes floor" for phase in PHASES]
    for heading in (*headings, "total faster\nthan eager", "total faster\nthan compiled"):
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        table.add_row(row["name"], *([] if row["note"] else _cells(row)))
    console.print(table)
    if warning := load_warning(result["other_busy_cores"]):
        console.print(warning, style="yellow")
    for row in result["rows"]:
        if row["note"]:
            console.print(f"{row['name']}: {row['note']}", markup=False)


def _cells(row: Mapping[str, Any]) -> list[str]:
    peak = row["peak_extra_bytes"]
    return [
        *(f"{1e3 * row['seconds'][phase]['median']:.3g}" for phase in PHASES),
        "?" if peak is None else f"{peak / 2**20:.0f}",
        *(_shown(row["times_floor"][phase]) for phase in PHASES),
        *(
            _shown((row[f"speedup_over_{peer}"] or {}).get("total"))
            for peer in ("eager", "compiled")
        ),
    ]


def _shown(found: Spread | None) -> str:
    return "-" if found is None else "{median:.2f}x\n({p20:.2f}-{p80:.2f})".format_map(found)


def shape_text(result: Mapping[str, Any]) -> str:
    """Which measurement a goal is about."""
    return f"{' x '.join(map(str, result['shape']))} {result['dtype']}"


def result_title(result: Mapping[str, Any]) -> str:
    """What a table or a plot is about."""
    return f"residual + dropout(gelu(input + bias), {P:g}), {shape_text(result)}"


MEASUREMENTS = [partial(measure, SHAPE, dtype) for dtype in ("float32", "bfloat16")]
SETUPS = {
    "cpu": Setup(
        "bias-act-dropout-add-",
        MEASUREMENTS,
        [Goal(0, P, "speedup_over_eager", at_least=6)],
    ),
    # 1.087: 92 % of the rate of copy_.
    "cuda": Setup(
        "bias-act-dropout-add-",
        MEASUREMENTS,
        [
            Goal(number, P, "times_floor", at_most=1.087, phase=phase)
            for number in range(2)
            for phase in ("forward", "backward")
        ],
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    script = Script(__doc__, SETUPS, RESULTS, print_result, shape_text, result_title)
    return run_script(script, argv)


if __name__ == "__main__":
    sys.exit(main())
