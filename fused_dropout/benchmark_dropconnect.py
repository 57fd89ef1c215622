"""The benchmark of `dropconnect_linear`: the fused op, naive PyTorch, torch.compile, dense."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._functorch import config as functorch_config
from torch.nn import functional as F

from fused_dropout.baselines import naive_dropconnect_linear
from fused_dropout.benchmark import (
    Measured,
    Samples,
    Spread,
    Subject,
    load_warning,
    measure_interleaved,
    ratio,
    spread,
)
from fused_dropout.cli import ArgumentError
from fused_dropout.functional import dropconnect_linear
from fused_dropout.memory import available_bytes

PHASES = ("forward", "d_input", "d_weight", "total")
OURS, NAIVE, COMPILED, DENSE = "fused_dropout", "naive PyTorch", "compiled naive", "dense"
# Mask, masked weights and their two gradients, each [B, O, I].
_NAIVE_TENSORS = 4
_NAIVE_SHARE_OF_MEMORY = 0.4
_GIB = 2**30

Call = Callable[[Tensor, Tensor, Tensor], Tensor]  # input, weight, bias


@dataclass(frozen=True)
class Problem:
    """What to measure. The peers are measured at the first p: their time does not depend on it."""

    batch: int
    out_features: int
    in_features: int
    ps: tuple[float, ...] = (0.5, 0.1)
    dtype: str = "float32"
    mask: str | int = "example"

    def operand_bytes(self) -> int:
        """Memory for input, weight, bias and output, and the gradient of each."""
        batch, outs, ins = self.batch, self.out_features, self.in_features
        return 2 * self._element_bytes() * (batch * ins + outs * ins + outs + batch * outs)

    def naive_bytes(self) -> int:
        """Memory that the naive layer needs for one forward and backward pass."""
        connections = self.batch * self.out_features * self.in_features
        return _NAIVE_TENSORS * self._element_bytes() * connections

    def _element_bytes(self) -> int:
        return torch.empty((), dtype=getattr(torch, self.dtype)).element_size()


def check_memory(problem: Problem) -> None:
    """Raise ArgumentError where not even the operands fit in the memory that is free."""
    free, needed = available_bytes(), problem.operand_bytes()
    if free is not None and needed > free:
        shape = f"{problem.batch},{problem.out_features},{problem.in_features}"
        raise ArgumentError(
            f"--shape {shape}: operands and gradients need about {needed / _GIB:.1f} GiB in "
            f"{problem.dtype}, {free / _GIB:.1f} GiB are available"
        )


def measure(
    problem: Problem,
    *,
    rounds: int,
    naive: bool = True,
    compiled: bool = True,
    progress: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Measure one shape; the result is ready for JSON.

    Returns a dictionary with the fields of `problem`, `rounds`, `other_busy_cores` (kept busy by
    other processes), `dense_multiply_adds_per_second` (in "total") and `rows`. Each row has `name`,
    `p`, `note`, `peak_extra_bytes` (of "total") and four tables per phase ("forward", "d_input",
    "d_weight", "total"), each entry with median, p20 and p80: `seconds`, `speedup_over_naive`,
    `speedup_over_compiled`, `times_dense`. "total" is the forward pass and the gradients of input,
    weight and bias in one backward pass; "d_input" and "d_weight" are a backward pass alone, with
    only that gradient asked for.
    """
    first_p = problem.ps[0]
    naive_fits = naive and _naive_fits(problem)
    ops = [_Op(OURS, p, partial(_fused, p=p, mask=problem.mask)) for p in problem.ps]
    ops.append(_Op(DENSE, None, F.linear))
    if naive_fits:
        ops.append(_Op(NAIVE, first_p, partial(naive_dropconnect_linear, p=first_p)))
    if naive_fits and compiled:
        torch.compiler.reset()
        compiled_naive = torch.compile(naive_dropconnect_linear, dynamic=False)
        ops.append(_Op(COMPILED, first_p, partial(compiled_naive, p=first_p)))

    make_call = Calls(problem)
    subjects = [
        Subject(op.label, partial(make_call, op.call), may_fail=op.name == COMPILED) for op in ops
    ]
    # torch.compile otherwise frees buffers that repeated backward passes over one graph need.
    with functorch_config.patch(donated_buffer=False):
        measured = measure_interleaved(
            subjects, PHASES, rounds=rounds, threads=torch.get_num_threads(),
            memory_phase="total", progress=progress,
        )  # fmt: skip
    by_name = {op.name: measured.subjects[op.label] for op in ops if op.name != OURS}
    rows = [_row(op, measured.subjects[op.label], by_name) for op in ops]
    if naive and not naive_fits:
        rows.append({"name": NAIVE, "p": first_p, "note": _too_large(problem)})
    dense = spread(by_name[DENSE].seconds["total"])
    assert dense is not None
    multiply_adds = 3 * problem.batch * problem.out_features * problem.in_features
    return {
        **asdict(problem),
        "rounds": rounds,
        "other_busy_cores": round(measured.other_busy_cores, 2),
        "dense_multiply_adds_per_second": multiply_adds / dense["median"],
        "rows": rows,
    }


@dataclass(frozen=True)
class _Op:
    name: str
    p: float | None
    call: Call

    @property
    def label(self) -> str:
        return _label(self.name, self.p)


def _label(name: str, p: float | None) -> str:
    return name if p is None else f"{name} p={p:g}"


def _fused(input: Tensor, weight: Tensor, bias: Tensor, *, p: float, mask: str | int) -> Tensor:
    return dropconnect_linear(input, weight, bias, p, mask=mask)


def _naive_fits(problem: Problem) -> bool:
    free = available_bytes()
    return free is None or problem.naive_bytes() <= _NAIVE_SHARE_OF_MEMORY * free


def _too_large(problem: Problem) -> str:
    free = (available_bytes() or 0) / _GIB
    need = problem.naive_bytes() / _GIB
    return f"skipped: it would need about {need:.1f} GiB, {free:.1f} GiB are available"


class Calls:
    """The same inputs for every subject; called with an op and a phase, returns what to time."""

    def __init__(self, problem: Problem) -> None:
        draw = torch.Generator().manual_seed(0)
        batch, outs, ins = problem.batch, problem.out_features, problem.in_features

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw).to(getattr(torch, problem.dtype))

        self.input = normal(batch, ins)
        self.weight = normal(outs, ins) / ins**0.5
        self.bias = normal(outs)
        self.d_output = normal(batch, outs)

    def __call__(self, op: Call, phase: str) -> Callable[[], object]:
        input = self.input.detach().requires_grad_(phase != "d_weight")
        weight = self.weight.detach().requires_grad_(phase != "d_input")
        bias = self.bias.detach().requires_grad_(phase in ("forward", "total"))
        if phase == "forward":
            return lambda: op(input, weight, bias)
        if phase == "total":
            return lambda: torch.autograd.grad(
                op(input, weight, bias), (input, weight, bias), self.d_output
            )
        wanted = input if phase == "d_input" else weight
        output = op(input, weight, bias)
        return lambda: torch.autograd.grad(output, wanted, self.d_output, retain_graph=True)


def _row(op: _Op, own: Measured, by_name: Mapping[str, Measured]) -> dict[str, Any]:
    def per_phase(
        peer: str, relation: Callable[[Samples, Samples], Samples]
    ) -> dict[str, Spread | None] | None:
        if peer not in by_name or peer == op.name:
            return None
        theirs = by_name[peer].seconds
        shared = [phase for phase in own.seconds if phase in theirs]
        return {phase: spread(relation(own.seconds[phase], theirs[phase])) for phase in shared}

    def speedup(own: Samples, theirs: Samples) -> Samples:
        return ratio(theirs, own)

    return {
        "name": op.name,
        "p": op.p,
        "note": own.note,
        "peak_extra_bytes": own.peak_extra_bytes,
        "seconds": {phase: spread(samples) for phase, samples in own.seconds.items()},
        "speedup_over_naive": per_phase(NAIVE, speedup),
        "speedup_over_compiled": per_phase(COMPILED, speedup),
        "times_dense": per_phase(DENSE, ratio),
    }


def print_result(result: Mapping[str, Any], console: Console) -> None:
    """Print one shape as a table, with how to read it below."""
    shape = "{batch} x {out_features} x {in_features}".format_map(result)
    title = f"DropConnect linear, B x O x I = {shape}, {result['dtype']}, mask={result['mask']}"
    table = Table(title=title)
    table.add_column("layer", no_wrap=True)
    headings = [f"{phase}\nms" for phase in PHASES]
    headings += [
        "peak\nextra MiB",
        "faster\nthan naive",
        "faster than\ncompiled",
        "times dense\n= floor",
    ]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["rows"]:
        table.add_row(*_cells(row))
    console.print(table)
    rate = result["dense_multiply_adds_per_second"] / 1e9
    console.print(
        "Ratios are of 'total' (forward + all gradients): median of the rounds (p20-p80). The "
        "floor is three passes of B*O*I multiply-adds at the rate that the dense layer reaches "
        f"here, {rate:.3g} G/s; so the ratio to dense is the ratio to the floor."
    )
    if result["mask"] not in ("example", "row", 1):
        console.print("The naive layer draws a mask per example all the same.")
    if warning := load_warning(result["other_busy_cores"]):
        console.print(warning, style="yellow")
    for row in result["rows"]:
        if row["note"]:
            console.print(f"{row['name']}: {row['note']}", markup=False)


def _cells(row: Mapping[str, Any]) -> list[str]:
    name = _label(row["name"], row["p"])
    if row["note"]:
        return [name]
    peak = row["peak_extra_bytes"]
    return [
        name,
        *(_milliseconds(row["seconds"][phase]["median"]) for phase in PHASES),
        "?" if peak is None else f"{peak / 2**20:.1f}",
        _total(row["speedup_over_naive"]),
        _total(row["speedup_over_compiled"]),
        _total(row["times_dense"]),
    ]


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


def _total(ratios: Mapping[str, Spread] | None) -> str:
    found = None if ratios is None else ratios.get("total")
    if found is None:
        return "-"
    median, low, high = (_three_digits(found[key]) for key in ("median", "p20", "p80"))
    return f"{median}x\n({low}-{high})"


def _three_digits(value: float) -> str:
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{decimals}f}"
