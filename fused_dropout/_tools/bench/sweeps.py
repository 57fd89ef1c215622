"""What `--sweep` varies: from an op and a sweep to the settings that are measured."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from fused_dropout._core import extension
from fused_dropout._tools.bench.op import BenchOp, Typical, shrunk
from fused_dropout._tools.common import ArgumentError

MAX_SIZE = 1 << 26
_SIZE_STEPS, _QUICK_SIZE_STEPS = 2, 5  # in powers of two
_QUICK_MAX_SIZE = 1 << 20


@dataclass(frozen=True)
class Setting:
    """All that one measurement depends on, but for the machine."""

    problem: Typical
    dtype: str
    p: float | None
    threads: int
    isa: str

    def facts(self) -> dict[str, Any]:
        """Ready for JSON; these tell a file's records of an op apart."""
        return {
            "shape": list(self.problem.shape),
            "memory_format": self.problem.memory_format,
            "options": dict(self.problem.options),
            "dtype": self.dtype,
            "p": self.p,
            "threads": self.threads,
            "isa": self.isa,
        }


@dataclass(frozen=True)
class Asked:
    """What the command line asks of every op; None and () leave it to the op."""

    sweep: str | None = None
    ps: tuple[float, ...] = ()
    dtype: str = "float32"
    problem: Typical | None = None
    max_size: int = MAX_SIZE
    quick: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Point:
    """One setting, and the swept quantity's value there, for tables and plots."""

    value: int | float | str | None
    setting: Setting


def points(op: BenchOp, asked: Asked) -> list[Point]:
    """What to measure; ArgumentError where the op has nothing like what is asked."""
    if obstacle := _obstacle(op, asked):
        raise ArgumentError(obstacle)
    problem = asked.problem or op.default
    if asked.quick:
        problem = replace(problem, shape=shrunk(problem.shape, quick_elements(op)))
    p = None if op.p is None else (asked.ps or (op.p,))[0]
    threads, isa = torch.get_num_threads(), extension.current_isa()
    base = Setting(problem, asked.dtype, p, threads, isa)
    if asked.sweep is None:
        return [Point(None, replace(base, p=p)) for p in asked.ps or (op.p,)]
    return _SWEEPS[asked.sweep](op, asked, base)


def quick_elements(op: BenchOp) -> int:
    """The most elements of a problem with `--quick`."""
    return op.quick


def _obstacle(op: BenchOp, asked: Asked) -> str:
    """Why the op cannot be measured as asked."""
    if asked.sweep == "p" and not op.ps:
        return f"--sweep p: {op.name} has no drop probability to choose"
    if asked.ps and op.p is None:
        return f"-p: {op.name} has no drop probability to choose"
    if asked.sweep == "dtype" and len(op.dtypes) == 1:
        return f"--sweep dtype: {op.name} has one dtype only"
    if asked.sweep == "shape" and not op.shapes:
        return f"--sweep shape: {op.name} has no list of shapes"
    if asked.dtype not in op.dtypes:
        return f"--dtype: {op.name} has {', '.join(op.dtypes)}, not {asked.dtype}"
    if asked.sweep in ("threads", "isa") and asked.device != "cpu":
        return f"--sweep {asked.sweep}: is about the CPU, not --device {asked.device}"
    return ""


def _sizes(op: BenchOp, asked: Asked, base: Setting) -> list[Point]:
    most = min(asked.max_size, _QUICK_MAX_SIZE) if asked.quick else asked.max_size
    step = _QUICK_SIZE_STEPS if asked.quick else _SIZE_STEPS
    sizes = [1 << power for power in range(0, most.bit_length(), step)]
    shapes = [(size, op.sized(size)) for size in sizes]
    return [_at(size, base, problem=Typical(shape, options=base.problem.options))
            for size, shape in shapes]  # fmt: skip


def _at(value: int | float | str, base: Setting, **changes: Any) -> Point:
    return Point(value, replace(base, **changes))


def _ps(op: BenchOp, asked: Asked, base: Setting) -> list[Point]:
    return [_at(p, base, p=p) for p in asked.ps or op.ps]


def _shapes(op: BenchOp, asked: Asked, base: Setting) -> list[Point]:
    problems = op.shapes
    if asked.quick:
        most = quick_elements(op)
        problems = tuple(replace(each, shape=shrunk(each.shape, most)) for each in problems)
    return [_at(shape_text(problem), base, problem=problem) for problem in problems]


def shape_text(problem: Typical) -> str:
    """Shape, and memory format and options where they are not the usual ones."""
    words = ["x".join(map(str, problem.shape))]
    if problem.memory_format != "contiguous":
        words.append(problem.memory_format)
    return " ".join([*words, *(f"{name}={value}" for name, value in problem.options)])


def _thread_counts(op: BenchOp, asked: Asked, base: Setting) -> list[Point]:
    most = processors()
    counts = [count for power in range(most.bit_length()) if (count := 1 << power) < most]
    return [_at(count, base, threads=count) for count in [*counts, most]]


def processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _isas(op: BenchOp, asked: Asked, base: Setting) -> list[Point]:
    return [_at(isa, base, isa=isa) for isa in extension.available_isas()]


def _dtypes(op: BenchOp, asked: Asked, base: Setting) -> list[Point]:
    return [_at(dtype, base, dtype=dtype) for dtype in op.dtypes]


_SWEEPS: dict[str, Callable[[BenchOp, Asked, Setting], list[Point]]] = {
    "size": _sizes,
    "p": _ps,
    "shape": _shapes,
    "threads": _thread_counts,
    "isa": _isas,
    "dtype": _dtypes,
}
SWEEPS = tuple(_SWEEPS)
