"""Integer arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .registers import Array, Read, Registers, SassError, Signed, is_predicate, operands_of, plain
from .sass import Instruction
from .table import Step, implements

_MASK = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_ONE = np.uint64(1)


def _addend(source: Signed) -> Read:
    """32 bits of an addend as 64, so that the sum shows the carry: -x is ~x + 1."""
    read, sign = source
    if sign == "-":
        return lambda: (~read()).astype(np.uint64) + _ONE
    if sign == "~":
        return lambda: (~read()).astype(np.uint64)
    return lambda: read().astype(np.uint64)


def _results_and_operands(instruction: Instruction) -> tuple[str, list[str], list[str]]:
    """The result, the predicates written beside it, and the rest."""
    result, *rest = operands_of(instruction.operands)
    carries = []
    while rest and is_predicate(rest[0]) and not rest[0].startswith("!"):
        carries.append(rest.pop(0))
    return result, carries, rest


def _write_carries(registers: Registers, carries: list[str]) -> Callable[[Array], None]:
    """Writes the carry of a sum to one predicate, and a second one to another."""
    writes = [registers.to_predicate(carry) for carry in carries]

    def write(total: Array) -> None:
        carry = total >> _32
        for number, one in enumerate(writes, start=1):
            one(carry >= number)

    return write


@implements("IADD3", "UIADD3", flags={"X"})
def add(registers: Registers, instruction: Instruction) -> Step:
    result, carries, rest = _results_and_operands(instruction)
    addends = [_addend(registers.signed(text)) for text in rest[:3]]
    carries_in = [registers.predicate(text) for text in rest[3:]]
    if bool(carries_in) != ("X" in instruction.flags):
        raise SassError("carries without .X")
    write = registers.to_word(result)
    write_carries = _write_carries(registers, carries) if carries else None
    if not carries and not carries_in:
        words = [registers.word(text) for text in rest[:3] if plain(text) not in ("RZ", "URZ")]
        if len(words) == 2:
            a, b = words
            return lambda: write(a() + b())

    def step() -> None:
        total = sum((read() for read in addends[1:]), addends[0]())
        for carry in carries_in:
            total = total + carry()
        write(total.astype(np.uint32))
        if write_carries:
            write_carries(total)

    return step


@implements("VIADD")
def add_two(registers: Registers, instruction: Instruction) -> Step:
    result, *rest = operands_of(instruction.operands)
    write = registers.to_word(result)
    a, b = (registers.word(text) for text in rest)
    return lambda: write(a() + b())


@implements("IMAD", "UIMAD", flags={"MOV", "U32", "IADD", "SHL", "X", "WIDE", "HI"})
def multiply_add(registers: Registers, instruction: Instruction) -> Step:
    flags = set(instruction.flags)
    result, carries, rest = _results_and_operands(instruction)
    if "WIDE" in flags or "HI" in flags:
        return _multiply_wide(registers, flags, result, carries, rest)
    if carries:
        raise SassError("carry of a 32-bit product")
    write = registers.to_word(result)
    a, b, c = (registers.word(text) for text in rest[:3])
    if "X" in flags:
        carry = registers.predicate(rest[3])
        return lambda: write(a() * b() + c() + carry().astype(np.uint32))
    if "MOV" in flags or [plain(text) for text in rest[:2]] == ["RZ", "RZ"]:
        return lambda: write(c())
    if plain(rest[2]) in ("RZ", "URZ"):
        return lambda: write(a() * b())
    if plain(rest[1]) == "0x1":
        return lambda: write(a() + c())
    return lambda: write(a() * b() + c())


def _multiply_wide(
    registers: Registers, flags: set[str], result: str, carries: list[str], rest: list[str]
) -> Step:
    """A product of 64 bits plus 64 bits, or the high half of that."""
    kind: type[np.generic] = np.uint64 if "U32" in flags else np.int64
    half = registers.word if "U32" in flags else registers.integer
    a, b = half(rest[0]), half(rest[1])
    c = registers.wide(rest[2])
    carry_in = registers.predicate(rest[3]) if "X" in flags else None
    carry_out = [registers.to_predicate(text) for text in carries]
    high = "HI" in flags
    write = registers.to_word(result) if high else registers.to_wide(result)

    def step() -> None:
        product = np.multiply(a(), b(), dtype=kind).view(np.uint64)
        addend = c()
        total = product + addend
        overflow = total < addend
        if carry_in:
            carry = carry_in().astype(np.uint64)
            total = total + carry
            overflow = overflow | (total < carry)
        write((total >> _32).astype(np.uint32) if high else total)
        for write_carry in carry_out:
            write_carry(overflow)

    return step


@implements("LEA", "ULEA", flags={"HI", "X", "SX32"})
def shift_and_add(registers: Registers, instruction: Instruction) -> Step:
    flags = set(instruction.flags)
    result, carries, rest = _results_and_operands(instruction)
    carry_in = registers.predicate(rest.pop()) if "X" in flags else None
    count = np.uint64(int(rest.pop(), 16))
    shifted, sign = registers.signed(rest[0])
    addend = _addend(registers.signed(rest[1]))
    high_word = registers.word(rest[2]) if len(rest) > 2 else None
    if high_word is None and "HI" in flags and "SX32" not in flags:
        raise SassError("no high word to shift")
    write = registers.to_word(result)
    write_carries = _write_carries(registers, carries) if carries else None

    def step() -> None:
        word = shifted().astype(np.uint64)
        if "SX32" in flags:
            word = shifted().view(np.int32).astype(np.int64).view(np.uint64)
        elif high_word is not None:
            word = word | (high_word().astype(np.uint64) << _32)
        word = word << count
        word = (word >> _32 if "HI" in flags else word) & _MASK
        if sign == "-":
            word = (~word & _MASK) + _ONE
        total = word + addend()
        if carry_in:
            total = total + carry_in()
        write(total.astype(np.uint32))
        if write_carries:
            write_carries(total)

    return step


@implements("IABS")
def absolute(registers: Registers, instruction: Instruction) -> Step:
    result, operand = operands_of(instruction.operands)
    write, read = registers.to_word(result), registers.integer(operand)
    return lambda: write(np.abs(read()))


@implements("VIMNMX", "IMNMX", "UIMNMX", flags={"U32", "S32"})
def minimum_or_maximum(registers: Registers, instruction: Instruction) -> Step:
    result, first, second, is_minimum = operands_of(instruction.operands)
    read = registers.word if "U32" in instruction.flags else registers.integer
    a, b, choose = read(first), read(second), registers.predicate(is_minimum)
    write = registers.to_word(result)
    return lambda: write(np.where(choose(), np.minimum(a(), b()), np.maximum(a(), b())))


@implements("VIADDMNMX", flags={"U32"})
def add_then_minimum(registers: Registers, instruction: Instruction) -> Step:
    result, first, second, third, is_minimum = operands_of(instruction.operands)
    read = registers.word if "U32" in instruction.flags else registers.integer
    a, b, c = read(first), read(second), read(third)
    choose, write = registers.predicate(is_minimum), registers.to_word(result)

    def step() -> None:
        total = a() + b()
        write(np.where(choose(), np.minimum(total, c()), np.maximum(total, c())))

    return step
