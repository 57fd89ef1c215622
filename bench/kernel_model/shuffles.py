"""Instructions that look at other lanes of the warp."""

from __future__ import annotations

import numpy as np

from .registers import WARP, Registers, is_predicate, operands_of
from .sass import Instruction
from .table import Step, implements


@implements("VOTE", "VOTEU", flags={"ANY", "ALL", "EQ"})
def vote(registers: Registers, instruction: Instruction) -> Step:
    operands = list(operands_of(instruction.operands))
    (name,) = instruction.flags
    condition = registers.predicate(operands.pop())
    predicate = registers.to_predicate(operands.pop()) if is_predicate(operands[-1]) else None
    ballot = registers.to_word(operands.pop()) if operands else None
    bits = np.uint32(1) << np.arange(WARP, dtype=np.uint32)

    def step() -> None:
        holds = condition() & registers.active
        if ballot:
            ballot(np.where(holds, bits, np.uint32(0)).sum(axis=1, keepdims=True, dtype=np.uint32))
        if predicate:
            every = (holds == registers.active).all(axis=1, keepdims=True)
            some = holds.any(axis=1, keepdims=True)
            predicate({"ANY": some, "ALL": every, "EQ": every | ~some}[name])

    return step


@implements("SHFL", flags={"BFLY", "IDX", "UP", "DOWN"})
def shuffle(registers: Registers, instruction: Instruction) -> Step:
    in_range, result, operand, lane, limits = operands_of(instruction.operands)
    write, write_in_range = registers.to_word(result), registers.to_predicate(in_range)
    read, by, bounds = registers.word(operand), registers.word(lane), registers.word(limits)
    (name,) = instruction.flags
    own = np.arange(WARP, dtype=np.int64)[None, :]

    def step() -> None:
        n, packed = by().astype(np.int64) & 31, bounds().astype(np.int64)
        segment, clamp = packed >> 8 & 31, packed & 31
        lowest, highest = own & segment, (own & segment) | (clamp & ~segment)
        if name == "BFLY":
            source = own ^ n
        elif name == "IDX":
            source = lowest | (n & ~segment)
        else:
            source = own - n if name == "UP" else own + n
        inside = source >= highest if name == "UP" else source <= highest
        source = np.broadcast_to(np.where(inside, source, own), registers.active.shape)
        values = np.broadcast_to(read(), registers.active.shape)
        write(np.take_along_axis(values, source, axis=1))
        write_in_range(inside)

    return step


@implements("R2UR")
def register_to_uniform(registers: Registers, instruction: Instruction) -> Step:
    result, operand = operands_of(instruction.operands)
    write, read = registers.to_word(result), registers.word(operand)

    def step() -> None:
        values = np.broadcast_to(read(), registers.active.shape)
        first = registers.active.argmax(axis=1)[:, None]
        write(np.take_along_axis(values, first, axis=1))

    return step
