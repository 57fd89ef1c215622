"""The registers of a block, and the operands of instructions that name them.

A register is an array [warps, 32], a uniform register [warps, 1]. Operands are read by functions
without arguments, made once for each instruction, and written by functions of the values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

WARP = 32
RZ, URZ, PT = 255, 63, 7

Array = NDArray[Any]
Read = Callable[[], Array]
Write = Callable[[Array], None]

_REGISTER = re.compile(r"(U?R)(\d+|Z)")
_PREDICATE = re.compile(r"(!?)(U?P)([0-6]|T)")
_CONSTANT = re.compile(r"c\[0x(\w+)\]\[(?:(\w+))?\+?(-?0x\w+)?\]")
_SPECIAL_FLOATS = {"+INF": "7f800000", "-INF": "ff800000", "+QNAN": "7fc00000", "-QNAN": "ffc00000"}


class SassError(Exception):
    """Machine code that the model cannot execute, or that does what it must not."""


class Signed(NamedTuple):
    """An integer operand without the sign in front of it: "-" negates, "~" inverts."""

    read: Read
    sign: str


def plain(operand: str) -> str:
    """Without `.reuse`, which only concerns the register file."""
    return operand.replace(".reuse", "").strip()


class Registers:
    """Registers, predicates and constants of one block, and who executes an instruction."""

    def __init__(self, warps: int, constants: dict[int, bytes]) -> None:
        self.warps = warps
        self.words = np.zeros((RZ + 1, warps, WARP), np.uint32)
        self.uniform_words = np.zeros((URZ + 1, warps, 1), np.uint32)
        self.predicates = np.zeros((PT + 1, warps, WARP), bool)
        self.uniform_predicates = np.zeros((PT + 1, warps, 1), bool)
        self.predicates[PT] = self.uniform_predicates[PT] = True
        self.constants = {
            bank: np.frombuffer(data + bytes(-len(data) % 16), np.uint8)
            for bank, data in constants.items()
        }
        # Threads that execute the current instruction: its lanes where the guard holds.
        self.active = np.ones((warps, WARP), bool)
        self.everyone = True

    def set_active(self, lanes: Array) -> None:
        self.active = lanes
        self.everyone = bool(lanes.all())

    # ---- reading

    def signed(self, operand: str) -> Signed:
        """An integer operand and its sign."""
        operand = plain(operand)
        if operand[0] in "-~" and not operand.startswith("-0x"):
            return Signed(self._unsigned(operand[1:]), operand[0])
        return Signed(self._unsigned(operand), "")

    def word(self, operand: str) -> Read:
        """32 bits, as an unsigned integer."""
        read, sign = self.signed(operand)
        if sign == "-":
            return lambda: ~read() + np.uint32(1)
        return (lambda: ~read()) if sign else read

    def integer(self, operand: str) -> Read:
        """32 bits, as a signed integer."""
        read = self.word(operand)
        return lambda: read().view(np.int32)

    def wide(self, operand: str) -> Read:
        """64 bits of two registers, as an unsigned integer."""
        low, high = self._pair(plain(operand))
        return lambda: (high().astype(np.uint64) << np.uint64(32)) | low()

    def real(self, operand: str) -> Read:
        """32 bits, as a float."""
        negative, absolute, operand = _float_signs(plain(operand))
        read = self._float_bits(operand) if _is_number(operand) else self._unsigned(operand)
        if absolute and negative:
            return lambda: -np.abs(read().view(np.float32))
        if absolute:
            return lambda: np.abs(read().view(np.float32))
        if negative:
            return lambda: -read().view(np.float32)
        return lambda: read().view(np.float32)

    def double(self, operand: str) -> Read:
        """64 bits of two registers, as a float."""
        negative, absolute, operand = _float_signs(plain(operand))
        read: Read
        if _is_number(operand):
            number = np.full((1, 1), float(operand))
            read = lambda: number  # noqa: E731
        else:
            wide = self.wide(operand)
            read = lambda: wide().view(np.float64)  # noqa: E731
        if absolute:
            inner = read
            read = lambda: np.abs(inner())  # noqa: E731
        if negative:
            return lambda: -read()
        return read

    def halves(self, operand: str) -> tuple[Read, Read]:
        """The low and the high 16 bits, as unsigned integers."""
        read = self._unsigned(plain(operand).partition(".")[0])
        return (lambda: read().astype(np.uint16)), (lambda: (read() >> 16).astype(np.uint16))

    def predicate(self, operand: str) -> Read:
        match = _PREDICATE.fullmatch(plain(operand))
        if not match:
            raise SassError(f"unknown predicate {operand}")
        number = PT if match[3] == "T" else int(match[3])
        of = self.predicates if match[2] == "P" else self.uniform_predicates
        value = of[number]
        return (lambda: ~value) if match[1] else (lambda: value)

    def _unsigned(self, operand: str) -> Read:
        """A register, an integer or a constant without a sign."""
        if match := _REGISTER.fullmatch(operand):
            words = self.uniform_words if match[1] == "UR" else self.words
            value = words[len(words) - 1 if match[2] == "Z" else int(match[2])]
            return lambda: value
        if re.fullmatch(r"-?0x[0-9a-f]+|-?\d+", operand):
            number = np.full((1, 1), int(operand, 0) & 0xFFFFFFFF, np.uint32)
            return lambda: number
        if operand.startswith("c["):
            return self.constant(operand, 4)
        raise SassError(f"unknown operand {operand}")

    def _float_bits(self, operand: str) -> Read:
        bits = _SPECIAL_FLOATS.get(operand)
        number = int(bits, 16) if bits else np.float32(operand).view(np.uint32)
        value = np.full((1, 1), number, np.uint32)
        return lambda: value

    def _pair(self, operand: str) -> tuple[Read, Read]:
        operand = operand.removesuffix(".64")
        match = _REGISTER.fullmatch(operand)
        if not match:
            raise SassError(f"unknown pair of registers {operand}")
        if match[2] == "Z":
            return self._unsigned(operand), self._unsigned(operand)
        return self._unsigned(operand), self._unsigned(f"{match[1]}{int(match[2]) + 1}")

    def constant(self, operand: str, size: int, part: int = 0) -> Read:
        """`size` <= 4 bytes of a constant bank, `part` words behind the place that is named."""
        match = _CONSTANT.fullmatch(operand)
        if not match or int(match[1], 16) not in self.constants:
            raise SassError(f"unknown constant {operand}")
        data = self.constants[int(match[1], 16)]
        offset = int(match[3] or "0", 16) + 4 * part
        if match[2] and match[2].startswith("0x"):
            offset += int(match[2], 16)
        elif match[2] and not match[2].endswith("Z"):
            index = self._unsigned(match[2])
            words = data.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[size])
            return lambda: words[(index().view(np.int32) + offset) // size % len(words)].astype(
                np.uint32
            )
        number = int.from_bytes(data[offset : offset + size].tobytes(), "little")
        if offset + size > len(data):
            raise SassError(f"{operand} lies behind the constants")
        value = np.full((1, 1), number, np.uint32)
        return lambda: value

    # ---- writing

    def to_word(self, operand: str, part: int = 0) -> Write:
        """Writes a register, or the one `part` numbers behind it; `values` have 32 bits."""
        match = _REGISTER.fullmatch(plain(operand))
        if not match:
            raise SassError(f"unknown result {operand}")
        if match[2] == "Z":
            return lambda values: None
        if match[1] == "UR":
            return self._to_uniform(self.uniform_words[int(match[2]) + part])
        register = self.words[int(match[2]) + part]

        def write(values: Array) -> None:
            if self.everyone:
                register[...] = values.view(np.uint32)
            else:
                np.copyto(register, values.view(np.uint32), where=self.active)

        return write

    def _to_uniform(self, register: Array) -> Write:
        def write(values: Array) -> None:
            if values.shape[-1] != 1:
                raise SassError("a uniform register gets other values in each lane")
            values = values.view(register.dtype)
            np.copyto(register, values, where=self.active.any(axis=1, keepdims=True))

        return write

    def to_wide(self, operand: str) -> Write:
        """Writes two registers; `values` have 64 bits."""
        low, high = self.to_word(operand), self.to_word(operand, 1)

        def write(values: Array) -> None:
            bits = values.view(np.uint64)
            low(bits.astype(np.uint32))
            high((bits >> np.uint64(32)).astype(np.uint32))

        return write

    def to_predicate(self, operand: str) -> Write:
        match = _PREDICATE.fullmatch(plain(operand))
        if not match or match[1]:
            raise SassError(f"unknown result {operand}")
        if match[3] == "T":
            return lambda values: None
        if match[2] == "UP":
            return self._to_uniform(self.uniform_predicates[int(match[3])])
        register = self.predicates[int(match[3])]

        def write(values: Array) -> None:
            np.copyto(register, values, where=self.active)

        return write


def is_predicate(operand: str) -> bool:
    return _PREDICATE.fullmatch(plain(operand)) is not None


def operands_of(text: str) -> Sequence[str]:
    return [part.strip() for part in text.split(",")] if text.strip() else []


def _is_number(operand: str) -> bool:
    return operand in _SPECIAL_FLOATS or re.match(r"-?[\d.]", operand) is not None


def _float_signs(operand: str) -> tuple[bool, bool, str]:
    """Is it negated, is it an absolute value, and the operand without the signs."""
    if _is_number(operand):
        return False, False, operand
    negative = operand.startswith("-")
    operand = operand.removeprefix("-")
    absolute = operand.startswith("|")
    return negative, absolute, operand.strip("|")
