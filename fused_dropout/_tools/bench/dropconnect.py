"""The benchmark of `dropconnect_linear`: the fused op, naive PyTorch, torch.compile, dense.

On a GPU also the paper's lower bound: the dense layer, and reading the masks it did without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fused_dropout._core import extension
from fused_dropout._core.private_torch import without_donated_buffers
from fused_dropout._tools.baselines import naive_dropconnect_linear
from fused_dropout._tools.bench.devices import CPU, Device, MultiplyAddRate
from fused_dropout._tools.bench.harness import (
    OURS,
    Measured,
    Samples,
    Spread,
    Subject,
    measure_interleaved,
    ratio,
    row_label,
    spread,
)
from fused_dropout._tools.bench.lower_bound import DenseReadingMasks
from fused_dropout._tools.common import ArgumentError
from fused_dropout.functional import dropconnect_linear
from fused_dropout.functional._dropconnect import MaskMode

# How many times a phase passes over all connections, a multiply-add for each.
PASSES = {"forward": 1, "d_input": 1, "d_weight": 1, "total": 3}
PHASES = tuple(PASSES)
NAIVE, COMPILED, DENSE = "naive PyTorch", "compiled naive", "dense"
LOWER_BOUND = "paper's lower bound"
# Mask, masked weights and their two gradients, each [B, O, I].
_NAIVE_TENSORS = 4
_NAIVE_SHARE_OF_MEMORY = 0.4
_GIB = 2**30
_SIDES = ("batch", "out_features", "in_features")

Call = Callable[[Tensor, Tensor, Tensor], Tensor]  # input, weight, bias


@dataclass(frozen=True)
class Problem:
    """What to measure. The peers are measured at the first p: their time does not depend on it."""

    batch: int
    out_features: int
    in_features: int
    ps: tuple[float, ...] = (0.5, 0.1)
    dtype: str = "float32"
    mask: MaskMode | int = "example"

    def operand_bytes(self) -> int:
        """Memory for input, weight, bias and output, and the gradient of each."""
        batch, outs, ins = self.batch, self.out_features, self.in_features
        return 2 * self._element_bytes() * (batch * ins + outs * ins + outs + batch * outs)

    def connections(self) -> int:
        """Mask bits and multiply-adds of one pass."""
        return self.batch * self.out_features * self.in_features

    def naive_bytes(self) -> int:
        """Memory that the naive layer needs for one forward and backward pass."""
        return _NAIVE_TENSORS * self._element_bytes() * self.connections()

    def _element_bytes(self) -> int:
        return torch.empty((), dtype=getattr(torch, self.dtype)).element_size()


def check_memory(problem: Problem, device: Device = CPU) -> None:
    """Raise ArgumentError where not even the operands fit in the memory that is free."""
    free, needed = device.available_bytes(), problem.operand_bytes()
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
    device: Device = CPU,
    progress: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Measure one shape; the result is ready for JSON.

    Returns a dictionary with the fields of `problem`, `device` ("cpu" or "cuda"), `rounds`,
    `other_busy_cores` (kept busy by other processes), `dense_multiply_adds_per_second` (in
    "total"), `multiply_add_rate` (what the FFMA floor assumes; None on a CPU) and `rows`. Each row
    has `name`, `p`, `note`, `peak_extra_bytes` (of "total") and tables per phase ("forward",
    "d_input", "d_weight", "total"), each entry with median, p20 and p80: `seconds`,
    `replay_seconds` (of CUDA graphs of "forward" and "total"; `replay_note` says why there are
    none), `speedup_over_naive`, `speedup_over_compiled`, `times_dense`, `times_lower_bound`,
    `share_of_ffma_floor`; None in place of a table whose peer was not measured. "total" is the
    forward pass and the gradients of input, weight and bias in one backward pass; "d_input" and
    "d_weight" are a backward pass alone, with only that gradient asked for.
    """
    naive_fits = naive and _naive_fits(problem, device)
    ops = _ops(problem, device, naive_fits, naive_fits and compiled)
    make_call = Calls(problem, device.kind)
    subjects = [
        Subject(op.label, partial(make_call, op.call), may_fail=op.name in (COMPILED, LOWER_BOUND))
        for op in ops
    ]
    with without_donated_buffers():
        measured = measure_interleaved(
            subjects, PHASES, rounds=rounds, memory_phase="total", device=device, progress=progress
        )
    # The floor of fp64 is another one.
    rate = device.multiply_add_rate() if problem.dtype != "float64" else None
    floor = _floor_seconds(problem, rate)
    by_name = {op.name: measured.subjects[op.label] for op in ops if op.name != OURS}
    rows = [_row(op, measured.subjects[op.label], by_name, floor) for op in ops]
    if naive and not naive_fits:
        rows.append({"name": NAIVE, "p": problem.ps[0], "note": _too_large(problem, device)})
    dense = spread(by_name[DENSE].seconds["total"])
    assert dense is not None
    return {
        **asdict(problem),
        "device": device.kind,
        "rounds": rounds,
        "other_busy_cores": round(measured.other_busy_cores, 2),
        "dense_multiply_adds_per_second": 3 * problem.connections() / dense["median"],
        "multiply_add_rate": None if rate is None else rate.figures(),
        "rows": rows,
    }


def as_family(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result of `measure` with the keys of family.py's, so that `records` there can read it."""
    about = {key: value for key, value in result.items() if key not in _SIDES}
    mask = about.pop("mask")
    rows = [{**row, "times_floor": row.get("times_dense")} for row in result["rows"]]
    return {
        "op": "dropconnect",
        "sweep": None,
        "value": None,
        "floor": DENSE,
        "shape": [result[side] for side in _SIDES],
        "memory_format": "contiguous",
        "options": {} if mask == "example" else {"mask": mask},
        "threads": torch.get_num_threads(),
        "isa": extension.current_isa(),
        **about,
        "rows": rows,
    }


def _ops(problem: Problem, device: Device, naive: bool, compiled: bool) -> list[_Op]:
    """What is measured, as rows of the table."""
    p = problem.ps[0]
    ops = [_Op(OURS, p, partial(_fused, p=p, mask=problem.mask)) for p in problem.ps]
    ops.append(_Op(DENSE, None, F.linear))
    if device.kind == "cuda":
        ops.append(_Op(LOWER_BOUND, None, DenseReadingMasks(problem.connections())))
    if naive:
        ops.append(_Op(NAIVE, p, partial(naive_dropconnect_linear, p=p)))
    if compiled:
        torch.compiler.reset()
        compiled_naive = torch.compile(naive_dropconnect_linear, dynamic=False)
        ops.append(_Op(COMPILED, p, partial(compiled_naive, p=p)))
    return ops


def _floor_seconds(problem: Problem, rate: MultiplyAddRate | None) -> dict[str, float] | None:
    """The time of every phase's multiply-adds at the device's rate."""
    if rate is None:
        return None
    seconds = problem.connections() / rate.per_second
    return {phase: passes * seconds for phase, passes in PASSES.items()}


@dataclass(frozen=True)
class _Op:
    name: str
    p: float | None
    call: Call

    @property
    def label(self) -> str:
        return row_label(self.name, self.p)


def _fused(
    input: Tensor, weight: Tensor, bias: Tensor, *, p: float, mask: MaskMode | int
) -> Tensor:
    return dropconnect_linear(input, weight, bias, p, mask=mask)


def _naive_fits(problem: Problem, device: Device) -> bool:
    free = device.available_bytes()
    return free is None or problem.naive_bytes() <= _NAIVE_SHARE_OF_MEMORY * free


def _too_large(problem: Problem, device: Device) -> str:
    free = (device.available_bytes() or 0) / _GIB
    need = problem.naive_bytes() / _GIB
    return f"skipped: it would need about {need:.1f} GiB, {free:.1f} GiB are available"


class Calls:
    """The same inputs for every subject; called with an op and a phase, returns what to time."""

    def __init__(self, problem: Problem, device: str = "cpu") -> None:
        draw = torch.Generator().manual_seed(0)
        batch, outs, ins = problem.batch, problem.out_features, problem.in_features

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw).to(device, getattr(torch, problem.dtype))

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


def _row(
    op: _Op, own: Measured, by_name: Mapping[str, Measured], floor: Mapping[str, float] | None
) -> dict[str, Any]:
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

    share = None
    if floor is not None:
        share = {
            phase: spread([floor[phase] / seconds for seconds in timings])
            for phase, timings in own.timings.items()
        }
    return {
        "name": op.name,
        "p": op.p,
        **own.figures(),
        "speedup_over_naive": per_phase(NAIVE, speedup),
        "speedup_over_compiled": per_phase(COMPILED, speedup),
        "times_dense": per_phase(DENSE, ratio),
        "times_lower_bound": per_phase(LOWER_BOUND, ratio),
        "share_of_ffma_floor": share,
    }
