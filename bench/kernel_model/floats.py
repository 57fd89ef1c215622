"""Floating-point instructions and conversions.

A multiply-add of floats is computed in double and rounded twice; approximations (MUFU) are rounded
once. So results agree with the hardware's up to the last bits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np

from .integers import COMPARISONS, JOINS, write_joined
from .registers import Array, Read, Registers, SassError, is_predicate, operands_of, plain
from .sass import Instruction
from .table import Step, implements

ROUNDINGS = {"RM", "RP", "RZ"}  # down, up, towards zero; to the nearest without one of them
_TOP = np.uint32(0x80000000)


def rounded(values: Array, flags: set[str]) -> Array:
    """Doubles as floats."""
    nearest = values.astype(np.float32)
    if "RM" in flags:
        nearest = np.where(nearest > values, np.nextafter(nearest, np.float32(-np.inf)), nearest)
    elif "RP" in flags:
        nearest = np.where(nearest < values, np.nextafter(nearest, np.float32(np.inf)), nearest)
    elif "RZ" in flags:
        away = np.abs(nearest) > np.abs(values)
        nearest = np.where(away, np.nextafter(nearest, np.float32(0)), nearest)
    if "SAT" in flags:
        nearest = np.where(nearest > 0, np.minimum(nearest, np.float32(1)), np.float32(0))
    return nearest


@implements("FFMA", flags={"FTZ", "SAT", *ROUNDINGS})
def multiply_add(registers: Registers, instruction: Instruction) -> Step:
    result, *rest = operands_of(instruction.operands)
    write = registers.to_word(result)
    a, b, c = (registers.real(text) for text in rest)
    flags = set(instruction.flags) - {"FTZ"}
    if flags:
        return lambda: write(rounded(a().astype(np.float64) * b() + c(), flags))
    return lambda: write((np.multiply(a(), b(), dtype=np.float64) + c()).astype(np.float32))


@implements("FADD", "FMUL", flags={"FTZ", "SAT", *ROUNDINGS})
def add_or_multiply(registers: Registers, instruction: Instruction) -> Step:
    result, first, second = operands_of(instruction.operands)
    write = registers.to_word(result)
    a, b = registers.real(first), registers.real(second)
    flags = set(instruction.flags) - {"FTZ"}
    function = np.add if instruction.base == "FADD" else np.multiply
    if flags:
        return lambda: write(rounded(function(a(), b(), dtype=np.float64), flags))
    return lambda: write(function(a(), b()))


@implements("DFMA", "DADD", "DMUL")
def of_doubles(registers: Registers, instruction: Instruction) -> Step:
    result, *rest = operands_of(instruction.operands)
    write = registers.to_wide(result)
    operands = [registers.double(text) for text in rest]
    if instruction.base == "DFMA":
        a, b, c = operands
        return lambda: write(a() * b() + c())
    a, b = operands
    function = np.add if instruction.base == "DADD" else np.multiply
    return lambda: write(function(a(), b()))


def _unordered(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda a, b: function(a, b) | np.isnan(a) | np.isnan(b)


_FLOAT_COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    **COMPARISONS,
    "NE": lambda a, b: (a < b) | (a > b),
    "NUM": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "NAN": lambda a, b: np.isnan(a) | np.isnan(b),
    **{f"{name}U": _unordered(function) for name, function in COMPARISONS.items()},
}


@implements("FSETP", "DSETP", flags={*_FLOAT_COMPARISONS, *JOINS, "FTZ"})
def compare(registers: Registers, instruction: Instruction) -> Step:
    name, *rest = instruction.flags
    operands = list(operands_of(instruction.operands))
    read = registers.real if instruction.base == "FSETP" else registers.double
    a, b = read(operands[2]), read(operands[3])
    (join,) = (flag for flag in rest if flag in JOINS)
    write = write_joined(registers, operands, join)
    function = _FLOAT_COMPARISONS[name]
    return lambda: write(function(a(), b()))


@implements("FSET", flags={"BF", *_FLOAT_COMPARISONS, *JOINS, "FTZ"})
def compare_to_float(registers: Registers, instruction: Instruction) -> Step:
    flags = [flag for flag in instruction.flags if flag not in ("BF", "FTZ")]
    result, first, second, other = operands_of(instruction.operands)
    if "BF" not in instruction.flags:
        raise SassError("FSET to an integer")
    write, condition = registers.to_word(result), registers.predicate(other)
    a, b = registers.real(first), registers.real(second)
    function, joined = _FLOAT_COMPARISONS[flags[0]], JOINS[flags[1]]
    return lambda: write(joined(function(a(), b()), condition()).astype(np.float32))


@implements("FSEL", flags={"FTZ"})
def select(registers: Registers, instruction: Instruction) -> Step:
    result, first, second, condition = operands_of(instruction.operands)
    write, choose = registers.to_word(result), registers.predicate(condition)
    a, b = registers.real(first), registers.real(second)
    return lambda: write(np.where(choose(), a(), b()))


@implements("FMNMX", flags={"NAN", "FTZ"})
def minimum_or_maximum(registers: Registers, instruction: Instruction) -> Step:
    result, first, second, is_minimum = operands_of(instruction.operands)
    write, choose = registers.to_word(result), registers.predicate(is_minimum)
    a, b = registers.real(first), registers.real(second)
    keeps_nan = "NAN" in instruction.flags
    least, most = (np.minimum, np.maximum) if keeps_nan else (np.fmin, np.fmax)
    return lambda: write(np.where(choose(), least(a(), b()), most(a(), b())))


@implements("FCHK", flags={"DIVIDE"})
def check_division(registers: Registers, instruction: Instruction) -> Step:
    """Does a / b need the slow way? Where exponents are extreme; never for ordinary numbers."""
    result, first, second = operands_of(instruction.operands)
    write = registers.to_predicate(result)
    a, b = registers.real(first), registers.real(second)

    def exponent(values: Array) -> Array:
        return (values.view(np.uint32) >> np.uint32(23) & np.uint32(255)).astype(np.int64)

    def step() -> None:
        above, below = exponent(a()), exponent(b())
        extreme = (below == 0) | (below >= 253) | (above == 255)
        write(extreme | (above <= 24) | (above - below >= 126) | (above - below <= -125))

    return step


# ---- approximations -----------------------------------------------------------------------------

_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "RCP": lambda x: 1 / x,
    "RSQ": lambda x: 1 / np.sqrt(x),
    "SQRT": np.sqrt,
    "EX2": np.exp2,
    "LG2": np.log2,
    "SIN": lambda x: np.sin(2 * np.pi * x),
    "COS": lambda x: np.cos(2 * np.pi * x),
    "TANH": np.tanh,
}


@implements("MUFU", flags={*_FUNCTIONS, "RCP64H", "FTZ"})
def approximate(registers: Registers, instruction: Instruction) -> Step:
    result, operand = operands_of(instruction.operands)
    write = registers.to_word(result)
    if "RCP64H" in instruction.flags:  # of the high words of doubles
        high = registers.word(operand)

        def reciprocal() -> None:
            bits = high().astype(np.uint64) << np.uint64(32)
            write(((1 / bits.view(np.float64)).view(np.uint64) >> np.uint64(32)).astype(np.uint32))

        return reciprocal
    function = _FUNCTIONS[instruction.flags[0]]
    read = registers.real(operand)
    return lambda: write(function(read().astype(np.float64)).astype(np.float32))


# ---- conversions --------------------------------------------------------------------------------

_TO_INTEGER: dict[str, Callable[[Array], Array]] = {
    "TRUNC": np.trunc,
    "FLOOR": np.floor,
    "CEIL": np.ceil,
}
_INTEGERS: dict[str, type[np.generic]] = {
    "U8": np.uint8,
    "S8": np.int8,
    "U16": np.uint16,
    "S16": np.int16,
    "U32": np.uint32,
    "S32": np.int32,
    "U64": np.uint64,
    "S64": np.int64,
}


def _integer_type(flags: set[str]) -> type[np.generic]:
    named = [kind for name, kind in _INTEGERS.items() if name in flags]
    return named[0] if named else np.int32


@implements("F2I", flags={*_TO_INTEGER, "U32", "S32", "U64", "S64", "FTZ", "NTZ", "F64"})
def float_to_integer(registers: Registers, instruction: Instruction) -> Step:
    flags = set(instruction.flags)
    result, operand = operands_of(instruction.operands)
    kind = _integer_type(flags)
    read = registers.double(operand) if "F64" in flags else registers.real(operand)
    is_wide = np.dtype(kind).itemsize == 8
    write = registers.to_wide(result) if is_wide else registers.to_word(result)
    to_whole = next((_TO_INTEGER[name] for name in _TO_INTEGER if name in flags), np.rint)
    least, most = np.iinfo(kind).min, np.iinfo(kind).max  # type: ignore[type-var]

    def step() -> None:
        whole = to_whole(read().astype(np.float64))
        whole = np.where(np.isnan(whole), 0.0, whole)
        values = np.clip(whole, least, np.nextafter(float(most), 0) if is_wide else most)
        write(values.astype(kind))

    return step


@implements("I2F", flags={*_INTEGERS, "RP", "RM", "RZ", "F64", "F32"})
def integer_to_float(registers: Registers, instruction: Instruction) -> Step:
    flags = set(instruction.flags)
    result, operand = operands_of(instruction.operands)
    kind = _integer_type(flags - {"F64", "F32"})
    operand, _, part = plain(operand).partition(".B")
    read = _integers(registers, operand, kind, int(part or "0"))
    if "F64" in flags:
        write_double = registers.to_wide(result)
        return lambda: write_double(read().astype(np.float64))
    write = registers.to_word(result)
    rounding = flags & ROUNDINGS
    if np.dtype(kind).itemsize < 8:
        return lambda: write(rounded(read().astype(np.float64), rounding))

    def step() -> None:  # doubles cannot hold all 64 bits
        values = read()
        nearest = values.astype(np.float32)
        back = np.minimum(nearest.astype(np.float64), float(2**63)).astype(np.uint64)
        if "RP" in rounding:
            nearest = np.where(
                back < values.view(np.uint64), np.nextafter(nearest, np.float32(np.inf)), nearest
            )
        write(nearest)

    return step


def _integers(registers: Registers, operand: str, kind: type[np.generic], part: int) -> Read:
    """A register as numbers of a type; of short ones number `part`."""
    size = np.dtype(kind).itemsize
    if size == 8:
        wide = registers.wide(operand)
        return lambda: wide().view(kind)
    word = registers.word(operand)
    if size == 4:
        return lambda: word().view(kind)
    unsigned = np.dtype(f"u{size}")
    return lambda: (word() >> np.uint32(8 * part)).astype(unsigned).view(kind)


@implements("I2FP", flags={"F32", "S32", "U32", *ROUNDINGS})
def word_to_float(registers: Registers, instruction: Instruction) -> Step:
    result, operand = operands_of(instruction.operands)
    write = registers.to_word(result)
    is_signed = "S32" in instruction.flags
    read = registers.integer(operand) if is_signed else registers.word(operand)
    flags = set(instruction.flags) & ROUNDINGS
    return lambda: write(rounded(read().astype(np.float64), flags))


@implements("F2F", flags={"F32", "F64"})
def float_to_double(registers: Registers, instruction: Instruction) -> Step:
    result, operand = operands_of(instruction.operands)
    if instruction.flags == ("F32", "F64"):
        read, write = registers.double(operand), registers.to_word(result)
        return lambda: write(read().astype(np.float32))
    if instruction.flags == ("F64", "F32"):
        read, write = registers.real(operand), registers.to_wide(result)
        return lambda: write(read().astype(np.float64))
    raise SassError("conversion between these types")


@implements("FRND", flags={*_TO_INTEGER, "FTZ"})
def to_whole(registers: Registers, instruction: Instruction) -> Step:
    result, operand = operands_of(instruction.operands)
    write, read = registers.to_word(result), registers.real(operand)
    names = [name for name in instruction.flags if name in _TO_INTEGER]
    function = _TO_INTEGER[names[0]] if names else np.rint
    return lambda: write(function(read()))


def bfloat16_bits(values: Array) -> Array:
    """Floats rounded to bfloat16, as unsigned integers of 16 bits."""
    bits = values.view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FFF), nearest).astype(np.uint16)


@implements("F2FP", flags={"BF16", "F16", "F32", "PACK_AB"})
def pack_halves(registers: Registers, instruction: Instruction) -> Step:
    result, first, second = operands_of(instruction.operands)
    write = registers.to_word(result)
    high, low = registers.real(first), registers.real(second)

    def short(values: Array) -> Array:
        if "BF16" in instruction.flags:
            return bfloat16_bits(values)
        return values.astype(np.float16).view(np.uint16)

    return lambda: write(
        short(high()).astype(np.uint32) << np.uint32(16) | short(low()).astype(np.uint32)
    )


# ---- two short floats in a register -------------------------------------------------------------


def _half(registers: Registers, operand: str, kind: str, high: bool) -> Read:
    """One half of an operand, as floats. `R4.H0_H0` is the low half in both places."""
    operand = plain(operand)
    sign = operand.startswith("-")
    operand = operand.removeprefix("-")
    is_absolute = operand.startswith("|")
    name, _, half = operand.strip("|").partition(".")
    name = name.strip("|")
    if half:
        high = half == "H1_H1"
    bits = registers.halves(name)[high]

    def read() -> Array:
        if kind == "BF16":
            values = (bits().astype(np.uint32) << np.uint32(16)).view(np.float32)
        else:
            values = bits().view(np.float16).astype(np.float32)
        values = np.abs(values) if is_absolute else values
        return -values if sign else values

    return read


_SHORT_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "HADD2": operator.add,
    "HMUL2": operator.mul,
    "HFMA2": lambda a, b, c: (a.astype(np.float64) * b + c).astype(np.float32),
}


@implements("HADD2", "HMUL2", "HFMA2", flags={"F32", "MMA", "BF16_V2"})
def of_halves(registers: Registers, instruction: Instruction) -> Step:
    result, *operands = operands_of(instruction.operands)
    write = registers.to_word(result)
    kind = "BF16" if "BF16_V2" in instruction.flags else "F16"
    # An immediate operand stands as two numbers, high and low.
    constant: list[float] = []
    if not any("R" in text or is_predicate(text) for text in operands[-2:]):
        constant = [float(text) for text in operands[-2:]]
        operands = operands[:-2]
    function = _SHORT_FUNCTIONS[instruction.base]

    def of_half(high: bool) -> Read:
        reads = [_half(registers, text, kind, high) for text in operands]
        number = np.full((1, 1), constant[not high] if constant else 0, np.float32)
        if constant:
            reads.append(lambda: number)
        return lambda: function(*(read() for read in reads))

    if "F32" in instruction.flags:
        widened = of_half(False)
        return lambda: write(widened())
    low, high = of_half(False), of_half(True)

    def short(values: Array) -> Array:
        if kind == "BF16":
            return bfloat16_bits(values)
        return values.astype(np.float16).view(np.uint16)

    return lambda: write(
        short(high()).astype(np.uint32) << np.uint32(16) | short(low()).astype(np.uint32)
    )
