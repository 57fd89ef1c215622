"""Predicts what a case takes: its launches' issue slots, and their times from the simulator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import machine as m
from .block import Launch
from .build import built
from .cases import Case
from .cubin import RESERVED_SHARED
from .device import Device
from .occupancy import blocks_at_once
from .registers import WARP
from .sass import MULTIPLY_ADDS, Instruction, loops_of
from .simulate import Simulated, WarpTrace, simulate, warp_traces

MOST_VARIANTS = 3  # blocks of a launch that are executed, at most
MOST_SIMULATED = 6_000_000  # instructions; of more blocks the time is extrapolated
LONG_TRACE = 400_000  # instructions of a block: no others are executed then


@dataclass(frozen=True)
class PredictedLaunch:
    """Slots are instructions of warps, of all blocks; main_slots those of loops with most FFMAs."""

    launch: Launch
    resident: int  # blocks of a multiprocessor
    slots: float
    main_slots: float
    ffma: float
    wavefronts: float
    dram_bytes: float
    opcodes: Counter[str]  # of one block
    cycles: float  # of the multiprocessor that has most to do
    simulated: Simulated

    @property
    def seconds(self) -> float:
        return self.cycles / m.CLOCK


@dataclass(frozen=True)
class Prediction:
    """All launches of a case, one after another."""

    case: Case
    launches: tuple[PredictedLaunch, ...]

    @property
    def main(self) -> PredictedLaunch:
        """The launch that takes longest."""
        return max(self.launches, key=lambda launch: launch.cycles)

    @property
    def kernel_seconds(self) -> float:
        return sum(launch.seconds for launch in self.launches)

    @property
    def seconds(self) -> float:
        """With the launches' own cost."""
        return self.kernel_seconds + len(self.launches) * m.LAUNCH_SECONDS

    @property
    def share(self) -> float:
        """Of the floor: the multiply-adds at full rate, or the bytes at the speed of a copy."""
        return self.case.floor_seconds / self.kernel_seconds

    @property
    def slots_per_unit(self) -> float:
        """Of one lane."""
        return sum(launch.slots for launch in self.launches) * WARP / self.case.units

    @property
    def main_slots_per_unit(self) -> float:
        return self.main.main_slots * WARP / self.case.units

    @property
    def shared_bytes(self) -> int:
        """That the kernels ask for, without what the system reserves."""
        return max(launch.launch.shared for launch in self.launches) - RESERVED_SHARED


def predict(case: Case) -> Prediction:
    device = Device(built(case.file), case.contents, case.in_dram)
    launches = device.call(case.entry, *case.arguments)
    return Prediction(case, tuple(_predict_launch(device, launch) for launch in launches))


def _predict_launch(device: Device, launch: Launch) -> PredictedLaunch:
    code = device.code[launch.kernel.name]
    threads = int(np.prod(launch.block))
    resident = blocks_at_once(launch.kernel, threads, launch.dynamic_shared)
    of_one = -(-launch.blocks // m.MULTIPROCESSORS)
    variants = _variants(device, launch, of_one)
    executed = np.concatenate([w.instructions for traces in variants for w in traces])
    counts = np.bincount(executed, minlength=len(code)) / len(variants)
    main = main_addresses(code)
    opcodes: Counter[str] = Counter()
    for instruction, count in zip(code, counts, strict=True):
        opcodes[instruction.kind] += int(count)
    simulated, cycles = _cycles(code, variants, of_one, resident, launch.blocks)

    def total(column: str) -> float:
        found = sum(int(getattr(w, column).sum()) for traces in variants for w in traces)
        return found / len(variants) * launch.blocks

    def slots(chosen: Sequence[bool]) -> float:
        return float(counts[np.array(chosen)].sum() * launch.blocks)

    return PredictedLaunch(
        launch,
        resident,
        float(counts.sum() * launch.blocks),
        slots([i.address in main for i in code]),
        slots([i.base in MULTIPLY_ADDS for i in code]),
        total("wavefronts"),
        total("dram") * 32,
        opcodes,
        cycles,
        simulated,
    )


def main_addresses(code: Sequence[Instruction]) -> set[int]:
    """The innermost loops with multiply-adds: that with most of them, and those with half as many,
    which the compiler makes of one."""

    def weight(loop: Sequence[Instruction]) -> int:
        return sum(i.base in MULTIPLY_ADDS for i in loop)

    loops = loops_of(code)
    most = max(map(weight, loops), default=0)
    return {i.address for loop in loops if most and 2 * weight(loop) >= most for i in loop}


def _variants(device: Device, launch: Launch, of_one: int) -> list[list[WarpTrace]]:
    """Traces of blocks that one multiprocessor gets, among those that get most."""
    code = device.code[launch.kernel.name]
    first = (launch.blocks - 1) % m.MULTIPROCESSORS // 2
    numbers = np.unique(np.linspace(0, of_one - 1, min(of_one, MOST_VARIANTS)).round().astype(int))
    traces: list[list[WarpTrace]] = []
    for number in numbers[np.argsort(abs(numbers - of_one // 2), kind="stable")]:
        block = first + int(number) * m.MULTIPROCESSORS
        traces.append(warp_traces(code, device.execute(launch, block), launch.warps))
        if sum(len(w.instructions) for w in traces[0]) > LONG_TRACE:
            break
    return traces


def _cycles(
    code: Sequence[Instruction],
    variants: list[list[WarpTrace]],
    of_one: int,
    resident: int,
    blocks: int,
) -> tuple[Simulated, float]:
    """Of a multiprocessor with `of_one` blocks, from fewer where those are too many."""
    busy = min(blocks, m.MULTIPROCESSORS)
    of_block = sum(len(w.instructions) for traces in variants for w in traces) / len(variants)
    most = max(4 * resident, int(MOST_SIMULATED / max(of_block, 1)))
    if of_one <= most:
        simulated = simulate(code, variants, of_one, resident, busy)
        return simulated, simulated.cycles
    half = simulate(code, variants, most // 2, resident, busy)
    whole = simulate(code, variants, most, resident, busy)
    each = (whole.cycles - half.cycles) / (most - most // 2)
    return whole, whole.cycles + each * (of_one - most)
