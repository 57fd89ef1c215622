"""Comparisons, predicates, and what is chosen by them; moves."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np

from .registers import Array, Registers, SassError, Write, operands_of, plain
from .sass import Instruction
from .table import Step, implements


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
