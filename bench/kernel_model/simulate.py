"""Simulates one multiprocessor: four schedulers that issue what a block's warps have executed.

A scheduler issues one instruction a cycle, from the warp that issued last or else the oldest that
can. A warp can when the stall count of its last instruction has passed, the scoreboards that its
next one waits for are released, and that one's pipe is free (machine.py has the rates). Accesses to
memory pass one after another: wavefronts through shared memory and L1, sectors between L2 and the
multiprocessor, and those of DRAM with its share of the copy bandwidth.

Not modelled: the instruction cache, banks of the register file, the queues before the memory
pipe, and other multiprocessors' disturbance.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import machine as m
from .block import Trace
from .build import BUILDS, HERE, fingerprint
from .execute import MEMORY as MEMORY_OPCODES
from .registers import Array, SassError, operands_of
from .sass import Instruction
from .tools import ReportError, run

WAITS = ("stall count", "global memory", "other scoreboards", "barrier", "pipe or slot")
_KINDS = (
    *("fixed", "variable", "shared", "global load", "global store", "copy", "commit"),
    *("await copies", "barrier"),
)


class _Instruction(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            *("pipe", "pipe_cycles", "kind", "latency", "stall", "write_barrier", "read_barrier"),
            "wait_mask",
        )
    ]


class _WarpTrace(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("instructions", "wavefronts", "l2", "dram")),
    ]


class _Machine(ctypes.Structure):
    _fields_ = [
        ("l2_bytes", ctypes.c_double),
        ("dram_bytes", ctypes.c_double),
        *(
            (name, ctypes.c_int32)
            for name in (
                *("l1_latency", "l2_latency", "dram_latency", "operand_latency"),
                *("barrier_latency", "branch_cycles"),
            )
        ),
    ]


class _Result(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("cycles", "issued", "wavefronts")),
        ("waits", ctypes.c_int64 * len(WAITS)),
    ]


@dataclass(frozen=True)
class WarpTrace:
    """What one warp executes. The arrays of accesses have an element for each that it makes."""

    instructions: Array
    wavefronts: Array
    l2: Array
    dram: Array


@dataclass(frozen=True)
class Simulated:
    """Of one multiprocessor."""

    cycles: float
    issued: int
    wavefronts: int
    waits: dict[str, int]  # cycles of warps, by reason


def pipe_of(instruction: Instruction) -> m.Pipe:
    """The unit that executes an instruction."""
    base = instruction.base
    if base in m.HEAVY_OPCODES:
        return m.WIDE_PRODUCT if {"WIDE", "HI"} & set(instruction.flags) else m.FMA_HEAVY
    if base in m.FMA_OPCODES:
        return m.FMA
    if base in m.ALU_OPCODES:
        return m.ALU
    if base in m.SPECIAL_OPCODES:
        return m.SPECIAL
    if base in m.DOUBLE_OPCODES:
        return m.DOUBLE
    if base == "SHFL":
        return m.SHUFFLE
    if base in MEMORY_OPCODES or base in ("LDC", "S2R", "S2UR"):
        return m.MEMORY
    if base in m.CONTROL_OPCODES:
        return m.NO_PIPE
    if base.startswith("U") or base in ("R2UR", "VOTEU"):
        return m.UNIFORM
    raise SassError(f"no pipe is known for `{instruction.text}`")


_LATENCIES = {
    "MUFU": m.MUFU_LATENCY,
    "SHFL": m.SHUFFLE_LATENCY,
    "LDC": m.CONSTANT_LATENCY,
    "ULDC": m.TO_UNIFORM_LATENCY,
    "S2R": m.SPECIAL_REGISTER_LATENCY,
    "S2UR": m.SPECIAL_REGISTER_LATENCY,
    "R2UR": m.TO_UNIFORM_LATENCY,
}


def _kind_and_latency(instruction: Instruction, pipe: m.Pipe) -> tuple[str, int]:
    base = instruction.base
    if base == "LDS":
        size = 16 if "128" in instruction.flags else 8 if "64" in instruction.flags else 4
        return "shared", m.SHARED_LATENCY[size]
    if base == "STS":
        return "shared", m.STORE_LATENCY
    if base in ("LDG", "LD", "ATOMG", "ATOM"):
        return "global load", 0
    if base in ("STG", "ST", "RED"):
        return "global store", 0
    if base == "LDGSTS":
        return "copy", 0
    if base == "LDGDEPBAR":
        return "commit", 0
    if base == "DEPBAR":
        return "await copies", int(operands_of(instruction.operands)[1], 16)
    if base == "BAR":
        return "barrier", 0
    if base in _LATENCIES:
        return "variable", _LATENCIES[base]
    if pipe == m.SPECIAL:
        return "variable", m.CONVERSION_LATENCY
    if pipe == m.DOUBLE:
        return "variable", m.DOUBLE_LATENCY
    return "fixed", 0


def _encoded(instruction: Instruction) -> _Instruction:
    pipe = pipe_of(instruction)
    kind, latency = _kind_and_latency(instruction, pipe)
    control = instruction.control
    return _Instruction(
        m.PIPES.index(pipe.name),
        pipe.cycles,
        _KINDS.index(kind),
        latency,
        control.stall,
        control.write_barrier,
        control.read_barrier,
        control.wait_mask,
    )


def warp_traces(code: Sequence[Instruction], trace: Trace, warps: int) -> list[WarpTrace]:
    """A block's trace, taken apart by warps."""
    is_memory = [instruction.base in MEMORY_OPCODES for instruction in code]
    before = list(itertools.accumulate(is_memory, initial=0))
    instructions: list[list[Array]] = [[] for _ in range(warps)]
    accesses: list[list[Array]] = [[] for _ in range(warps)]
    at = 0  # the next access
    runs: dict[tuple[int, int], Array] = {}
    for first, end, took_part in trace.runs:
        run_of = runs.setdefault((first, end), np.arange(first, end, dtype=np.int32))
        count = int(before[end] - before[first])
        numbers = np.arange(at, at + count)
        at += count
        for member in np.flatnonzero(took_part):
            instructions[member].append(run_of)
            accesses[member].append(numbers)
    if at != len(trace.accesses):
        raise SassError("a trace lacks accesses")
    empty = np.zeros(0, np.int64)
    traces = []
    columns = [
        np.array([getattr(access, name) for access in trace.accesses]).reshape(-1, warps)
        for name in ("wavefronts", "l2", "dram")
    ]
    for warp in range(warps):
        own = np.concatenate([empty, *accesses[warp]])
        made = [np.ascontiguousarray(column[own, warp], np.int32) for column in columns]
        executed = np.concatenate([empty, *instructions[warp]]).astype(np.int32)
        traces.append(WarpTrace(executed, *made))
    return traces


@functools.cache
def _library() -> ctypes.CDLL:
    source = HERE / "simulate.cpp"
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise ReportError("no C++ compiler on PATH, which the simulator needs")
    flags = ("-std=c++17", "-O2", "-shared", "-fPIC")
    target = BUILDS / f"simulate-{fingerprint((compiler, flags), [source])}.so"
    if not target.exists():
        BUILDS.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        run([compiler, *flags, source, "-o", partial])
        partial.rename(target)
    return ctypes.CDLL(str(target))


def dram_share(multiprocessors: int) -> float:
    """Bytes a cycle of each, where so many are busy."""
    return min(m.MOST_BYTES, m.COPY_BANDWIDTH / multiprocessors / m.CLOCK)


def l2_share(multiprocessors: int) -> float:
    return min(m.MOST_BYTES, m.L2_BANDWIDTH / multiprocessors / m.CLOCK)


def simulate(
    code: Sequence[Instruction],
    variants: Sequence[Sequence[WarpTrace]],
    blocks: int,
    resident: int,
    busy: int = m.MULTIPROCESSORS,
) -> Simulated:
    """`blocks` blocks on one multiprocessor, `resident` at a time, while `busy` of them are.

    The blocks take the traces `variants` in turn.
    """
    encoded = (_Instruction * len(code))(*map(_encoded, code))
    is_memory = bytes(instruction.base in MEMORY_OPCODES for instruction in code)
    warps = len(variants[0])
    traces = (_WarpTrace * (len(variants) * warps))()
    kept = []  # as long as C++ has their addresses
    for place, trace in zip(traces, itertools.chain(*variants), strict=True):
        columns = [
            np.ascontiguousarray(column, np.int32)
            for column in (trace.instructions, trace.wavefronts, trace.l2, trace.dram)
        ]
        kept.append(columns)
        place.count = len(trace.instructions)
        for name, column in zip(("instructions", "wavefronts", "l2", "dram"), columns, strict=True):
            setattr(place, name, column.ctypes.data)
    model = _Machine(
        l2_share(busy),
        dram_share(busy),
        m.L1_LATENCY,
        m.L2_LATENCY,
        m.DRAM_LATENCY,
        m.OPERAND_LATENCY,
        m.BARRIER_LATENCY,
        m.BRANCH_CYCLES,
    )
    result = _Result()
    _library().simulate(
        encoded,
        is_memory,
        ctypes.byref(model),
        traces,
        ctypes.c_int32(warps),
        ctypes.c_int32(len(variants)),
        ctypes.c_int64(blocks),
        ctypes.c_int32(resident),
        ctypes.byref(result),
    )
    waits = dict(zip(WAITS, result.waits, strict=True))
    return Simulated(result.cycles, result.issued, result.wavefronts, waits)
