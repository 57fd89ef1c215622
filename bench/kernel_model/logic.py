"""Instructions on single bits: logic, shifts, bytes, counts."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np

from .registers import Array, Registers, SassError, is_predicate, operands_of, plain
from .sass import Instruction
from .table import Step, implements

_32 = np.uint64(32)
_ONE = np.uint64(1)

_Logic = Callable[[Array, Array, Array], Array]
_LOGIC: dict[int, _Logic] = {
    0xC0: lambda a, b, c: a & b,
    0xFC: lambda a, b, c: a | b,
    0x3C: lambda a, b, c: a ^ b,
    0x96: lambda a, b, c: a ^ b ^ c,
    0x33: lambda a, b, c: ~b,
    0x0F: lambda a, b, c: ~a,
    0xF8: lambda a, b, c: a | (b & c),
    0xEA: lambda a, b, c: (a & b) | c,
    0xFE: lambda a, b, c: a | b | c,
    0x80: lambda a, b, c: a & b & c,
    0xCA: lambda a, b, c: (a & b) | (~a & c),
}


def logic_of(table: int) -> _Logic:
    """The function of three bits whose value for (a, b, c) is bit 4a + 2b + c of `table`."""
    known = _LOGIC.get(table)
    if known:
        return known

    def combined(a: Array, b: Array, c: Array) -> Array:
        result = np.zeros_like(a)
        for place in range(8):
            if table >> place & 1:
                parts = zip((a, b, c), (4, 2, 1), strict=True)
                x, y, z = (value if place & bit else ~value for value, bit in parts)
                result = result | (x & y & z)
        return result

    return combined


@implements("LOP3", "ULOP3", flags={"LUT", "PAND"})
def logic(registers: Registers, instruction: Instruction) -> Step:
    operands = list(operands_of(instruction.operands))
    not_zero = operands.pop(0) if is_predicate(operands[0]) else None
    write = registers.to_word(operands[0])
    a, b, c = (registers.word(text) for text in operands[1:4])
    function = logic_of(int(operands[4], 16))
    if not_zero is None:
        return lambda: write(function(a(), b(), c()))
    write_predicate = registers.to_predicate(not_zero)
    other = registers.predicate(operands[5])
    joined = operator.and_ if "PAND" in instruction.flags else operator.or_

    def step() -> None:
        value = function(a(), b(), c())
        write(value)
        write_predicate(joined(value != 0, other()))

    return step


@implements("PLOP3", "UPLOP3", flags={"LUT"})
def predicate_logic(registers: Registers, instruction: Instruction) -> Step:
    first, second, *rest = operands_of(instruction.operands)
    write, write_second = registers.to_predicate(first), registers.to_predicate(second)
    a, b, c = (registers.predicate(text) for text in rest[:3])
    functions = [logic_of(int(text, 16)) for text in rest[3:5]]

    def step() -> None:
        values = np.broadcast_arrays(a(), b(), c())
        results = [function(*values) for function in functions]
        write(results[0])
        write_second(results[1])

    return step


@implements("SHF", "USHF", flags={"L", "R", "W", "U32", "S32", "U64", "S64", "HI"})
def funnel_shift(registers: Registers, instruction: Instruction) -> Step:
    flags = set(instruction.flags)
    result, *rest = operands_of(instruction.operands)
    write = registers.to_word(result)
    low, count, high = (registers.word(text) for text in rest)
    width = 64 if flags & {"U64", "S64"} else 32
    left, signed, takes_high = "L" in flags, bool(flags & {"S32", "S64"}), "HI" in flags
    low_is_zero = plain(rest[0]) == "RZ"
    if not left and takes_high and low_is_zero and not signed and "W" not in flags:

        def shift_right() -> None:
            n = count()
            write(np.where(n < 32, high() >> (n & np.uint32(31)), np.uint32(0)))

        return shift_right

    def step() -> None:
        n = count().astype(np.uint64)
        n = n & np.uint64(width - 1) if "W" in flags else np.minimum(n, np.uint64(width))
        both = (high().astype(np.uint64) << _32) | low()
        near = np.minimum(n, np.uint64(63))
        rest_of_it = n - near  # 1 where all 64 bits go
        if left:
            value = both << near << rest_of_it
        elif signed:
            value = (both.view(np.int64) >> near.view(np.int64)).view(np.uint64)
        else:
            value = both >> near >> rest_of_it
        write((value >> _32 if takes_high else value).astype(np.uint32))

    return step


@implements("PRMT", "UPRMT")
def permute_bytes(registers: Registers, instruction: Instruction) -> Step:
    result, *rest = operands_of(instruction.operands)
    write = registers.to_word(result)
    a, select, b = (registers.word(text) for text in rest)

    def step() -> None:
        selector, low, high = np.broadcast_arrays(select(), a(), b())
        both = (high.astype(np.uint64) << _32) | low
        value = np.zeros(both.shape, np.uint32)
        for place in range(4):
            nibble = (selector >> np.uint32(4 * place)) & np.uint32(15)
            byte = (both >> (np.uint64(8) * (nibble & np.uint32(7)))).astype(np.uint8)
            sign = np.where(byte & 0x80, np.uint8(0xFF), np.uint8(0))
            byte = np.where(nibble & np.uint32(8), sign, byte)
            value |= byte.astype(np.uint32) << np.uint32(8 * place)
        write(value)

    return step


def _popcount(values: Array) -> Array:
    return sum(
        ((values >> np.uint32(bit)) & np.uint32(1) for bit in range(1, 32)), values & np.uint32(1)
    )


@implements("POPC", "UPOPC")
def count_bits(registers: Registers, instruction: Instruction) -> Step:
    result, operand = operands_of(instruction.operands)
    write, read = registers.to_word(result), registers.word(operand)
    return lambda: write(_popcount(read()))


@implements("BREV", "UBREV")
def reverse_bits(registers: Registers, instruction: Instruction) -> Step:
    result, operand = operands_of(instruction.operands)
    write, read = registers.to_word(result), registers.word(operand)

    def step() -> None:
        value = read()
        bits = (((value >> np.uint32(k)) & np.uint32(1)) << np.uint32(31 - k) for k in range(32))
        write(sum(bits, np.zeros_like(value)))

    return step


@implements("FLO", "UFLO", flags={"U32", "SH"})
def find_leading_one(registers: Registers, instruction: Instruction) -> Step:
    result, operand = operands_of(instruction.operands)
    write, read = registers.to_word(result), registers.word(operand)
    if "U32" not in instruction.flags:
        raise SassError("FLO of a signed number")

    def step() -> None:
        value = read()
        place = np.floor(np.log2(np.maximum(value, 1).astype(np.float64))).astype(np.uint32)
        place = np.uint32(31) - place if "SH" in instruction.flags else place
        write(np.where(value == 0, np.uint32(0xFFFFFFFF), place))

    return step


@implements("SGXT", "USGXT", flags={"U32"})
def extend_sign(registers: Registers, instruction: Instruction) -> Step:
    result, operand, width = operands_of(instruction.operands)
    write, read = registers.to_word(result), registers.word(operand)
    gap = np.uint32(32 - int(width, 0))
    if "U32" in instruction.flags:
        return lambda: write(read() << gap >> gap)
    return lambda: write((read() << gap).view(np.int32) >> gap.view(np.int32))


@implements("BMSK", "UBMSK", flags={"W"})
def bit_mask(registers: Registers, instruction: Instruction) -> Step:
    result, start, width = operands_of(instruction.operands)
    write, first, count = (
        registers.to_word(result),
        registers.word(start),
        registers.word(width),
    )

    def step() -> None:
        n = np.minimum(count(), 32).astype(np.uint64)
        ones = (_ONE << n) - _ONE
        write((ones << np.minimum(first(), 32).astype(np.uint64)).astype(np.uint32))

    return step
