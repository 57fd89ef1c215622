"""Integer instructions, moves and predicates."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np

from .registers import (
    WARP,
    Array,
    Read,
    Registers,
    SassError,
    Signed,
    Write,
    is_predicate,
    operands_of,
    plain,
)
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


# ---- bits ---------------------------------------------------------------------------------------

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


# ---- moves and choices --------------------------------------------------------------------------


@implements("MOV", "UMOV")
def move(registers: Registers, instruction: Instruction) -> Step:
    result, operand = operands_of(instruction.operands)[:2]
    write, read = registers.to_word(result), registers.word(operand)
    return lambda: write(read())


@implements("SEL", "USEL")
def select(registers: Registers, instruction: Instruction) -> Step:
    result, first, second, condition = operands_of(instruction.operands)
    write, choose = registers.to_word(result), registers.predicate(condition)
    a, b = registers.word(first), registers.word(second)
    return lambda: write(np.where(choose(), a(), b()))


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


@implements("P2R", flags={"B0", "B1", "B2", "B3"})
def predicates_to_register(registers: Registers, instruction: Instruction) -> Step:
    result, predicates, operand, mask = operands_of(instruction.operands)
    if predicates != "PR":
        raise SassError(f"unknown predicates {predicates}")
    result, byte = _byte_of(result)
    shift, chosen = np.uint32(8 * byte), int(mask, 16)
    write, read = registers.to_word(result), registers.word(operand)

    def step() -> None:
        value = read() & ~(np.uint32(chosen) << shift)
        for number in range(7):
            if chosen >> number & 1:
                bit = registers.predicates[number].astype(np.uint32)
                value = value | (bit << (shift + np.uint32(number)))
        write(value)

    return step


@implements("R2P")
def register_to_predicates(registers: Registers, instruction: Instruction) -> Step:
    predicates, operand, mask = operands_of(instruction.operands)
    if predicates != "PR":
        raise SassError(f"unknown predicates {predicates}")
    operand, byte = _byte_of(operand)
    read, chosen = registers.word(operand), int(mask, 16)
    writes = [
        (registers.to_predicate(f"P{k}"), np.uint32(1 << (8 * byte + k)))
        for k in range(7)
        if chosen >> k & 1
    ]

    def step() -> None:
        value = read()
        for write, bit in writes:
            write((value & bit) != 0)

    return step


def _byte_of(operand: str) -> tuple[str, int]:
    """The register in R4.B1, and which of its bytes is meant."""
    name, _, byte = plain(operand).partition(".B")
    return name, int(byte or "0")


# ---- comparisons --------------------------------------------------------------------------------

COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}
JOINS = {"AND": operator.and_, "OR": operator.or_, "XOR": operator.xor}


def write_joined(registers: Registers, operands: list[str], join: str) -> Write:
    """Writes a comparison's result, joined with a predicate, and the opposite likewise."""
    writes = [registers.to_predicate(text) for text in operands[:2]]
    other = registers.predicate(operands[4])
    joined = JOINS[join]

    def write(values: Array) -> None:
        condition = other()
        writes[0](joined(values, condition))
        writes[1](joined(~values, condition))

    return (
        write
        if operands[1] not in ("PT", "UPT")
        else lambda values: writes[0](joined(values, other()))
    )


@implements("ISETP", "UISETP", flags={*COMPARISONS, *JOINS, "U32", "EX"})
def compare(registers: Registers, instruction: Instruction) -> Step:
    name, *rest = instruction.flags
    operands = list(operands_of(instruction.operands))
    read = registers.word if "U32" in rest else registers.integer
    a, b = read(operands[2]), read(operands[3])
    (join,) = (flag for flag in rest if flag in JOINS)
    write = write_joined(registers, operands, join)
    function = COMPARISONS[name]
    if "EX" not in rest:
        return lambda: write(function(a(), b()))
    low = registers.predicate(operands[5])

    # The high words decide, or else the comparison of the low ones.
    def step() -> None:
        x, y = a(), b()
        if name in ("EQ", "NE"):
            write(function(x, y) & low() if name == "EQ" else function(x, y) | low())
        else:
            strict = operator.lt if name in ("LT", "LE") else operator.gt
            write(strict(x, y) | ((x == y) & low()))

    return step


# ---- between lanes ------------------------------------------------------------------------------


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
