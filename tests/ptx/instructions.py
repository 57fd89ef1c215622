"""What each instruction does, for all threads at once. One that is not here raises PtxError."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from .memory import SHARED_WINDOW, Numbers
from .parse import Instruction, PtxError

if TYPE_CHECKING:
    from .machine import Machine

DTYPES: dict[str, type[np.generic]] = {
    "pred": np.bool_,
    "f32": np.float32,
    "f64": np.float64,
    **{f"{kind}8": np.uint8 for kind in "bu"},
    **{f"{kind}16": np.uint16 for kind in "bu"},
    **{f"{kind}32": np.uint32 for kind in "bu"},
    **{f"{kind}64": np.uint64 for kind in "bu"},
    "s8": np.int8,
    "s16": np.int16,
    "s32": np.int32,
    "s64": np.int64,
}
HALVES = ("f16", "bf16")  # in registers of 16 bits

Execute = Callable[["Machine", Instruction], None]
table: dict[str, tuple[Execute, frozenset[str]]] = {
    # The machine itself runs these (machine.py).
    name: (lambda machine, instruction: None, frozenset({"warp"}))
    for name in ("bra", "ret", "bar")
}


def implements(name: str, *flags: str) -> Callable[[Execute], Execute]:
    """Puts a function into the table; `flags` are those that it understands or may ignore."""

    def add(function: Execute) -> Execute:
        table[name] = (function, frozenset(flags))
        return function

    return add


def bind(machine: Machine, instruction: Instruction) -> Callable[[], None]:
    """The instruction as a function, so that unknown ones are noticed before the launch."""
    function, flags = table.get(instruction.opcode, (None, frozenset()))
    if function is None or not flags.issuperset(instruction.flags):
        raise PtxError(f"{machine.kernel.name}: unsupported instruction `{instruction.text}`")
    return partial(function, machine, instruction)


def parts(operand: str) -> list[str]:
    """The registers of `{%r1, %r2}`, or the only one."""
    return [part.strip() for part in operand.strip("{}").split(",")]


def is_float(kind: str) -> bool:
    return kind[0] == "f"


def bits_of(kind: str) -> int:
    """The width of a type."""
    return 8 * np.dtype(DTYPES[kind]).itemsize


# ---- arithmetic and logic


def divide(a: Numbers, b: Numbers) -> Numbers:
    """Integers towards zero; all ones for a division by zero, as the hardware has it."""
    by = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // by
    if a.dtype.kind == "i":  # `//` goes down
        quotient += ((a % by != 0) & ((a < 0) != (by < 0))).astype(a.dtype)
    return np.where(b == 0, a.dtype.type(0) - a.dtype.type(1), quotient)


def remainder(a: Numbers, b: Numbers) -> Numbers:
    return a - divide(a, b) * b


def shift_left(a: Numbers, count: Numbers) -> Numbers:
    """Counts of the width and above leave nothing."""
    bits = 8 * a.itemsize
    shifted = a << np.minimum(count, bits - 1).astype(a.dtype)
    return np.where(count >= bits, a.dtype.type(0), shifted)


def shift_right(a: Numbers, count: Numbers) -> Numbers:
    """Counts of the width and above leave the sign."""
    bits = 8 * a.itemsize
    shifted = a >> np.minimum(count, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(count >= bits, a.dtype.type(0), shifted)


BINARY: dict[str, Callable[[Numbers, Numbers], Numbers]] = {
    "add": operator.add,
    "sub": operator.sub,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "min": np.minimum,
    "max": np.maximum,
    "div": divide,
    "rem": remainder,
}


def binary(machine: Machine, instruction: Instruction) -> None:
    kind = instruction.type
    to, a, b = instruction.operands
    if kind == "pred":
        values = BINARY[instruction.opcode](machine.predicate(a), machine.predicate(b))
    elif is_float(kind) and instruction.opcode not in ("add", "sub"):
        raise PtxError("unsupported for floats")
    else:
        values = BINARY[instruction.opcode](machine.read(a, kind), machine.read(b, kind))
    machine.write(to, values)


for name in BINARY:
    table[name] = (binary, frozenset({"rn"}))


@implements("shl")
@implements("shr")
def shift(machine: Machine, instruction: Instruction) -> None:
    to, a, count = instruction.operands
    function = shift_left if instruction.opcode == "shl" else shift_right
    values = function(machine.read(a, instruction.type), machine.read(count, "u32"))
    machine.write(to, values)


@implements("shf", "r", "wrap")
def funnel_shift(machine: Machine, instruction: Instruction) -> None:
    """The low word of two, shifted to the right by the count modulo 32."""
    to, *operands = instruction.operands
    low, high, count = (machine.read(operand, "u32").astype(np.uint64) for operand in operands)
    both = high << np.uint64(32) | low
    machine.write(to, (both >> (count & np.uint64(31))).astype(np.uint32))


@implements("bfi")
def insert_bits(machine: Machine, instruction: Instruction) -> None:
    """The lowest bits of one word in place of some of another."""
    to, *operands = instruction.operands
    bits, into, start, count = (machine.read(o, "u32").astype(np.uint64) for o in operands)
    mask = ((np.uint64(1) << count) - np.uint64(1)) << start
    machine.write(to, ((into & ~mask) | (bits << start & mask)).astype(np.uint32))


@implements("not")
def invert(machine: Machine, instruction: Instruction) -> None:
    to, a = instruction.operands
    pred = instruction.type == "pred"
    machine.write(to, ~(machine.predicate(a) if pred else machine.read(a, instruction.type)))


@implements("popc")
def count_ones(machine: Machine, instruction: Instruction) -> None:
    to, a = instruction.operands
    bits = np.unpackbits(machine.read(a, instruction.type).view(np.uint8).reshape(-1, 4), axis=1)
    machine.write(to, bits.sum(axis=1, dtype=np.uint32))


@implements("neg")
def negate(machine: Machine, instruction: Instruction) -> None:
    to, a = instruction.operands
    machine.write(to, -machine.read(a, instruction.type))


def high_half(a: Numbers, b: Numbers) -> Numbers:
    """That of a product of 64-bit numbers, from the products of their words."""
    low, word = np.uint64(0xFFFFFFFF), np.uint64(32)
    crossed = (a >> word) * (b & low) + ((a & low) * (b & low) >> word)
    middle = (a & low) * (b >> word) + (crossed & low)
    return (a >> word) * (b >> word) + (crossed >> word) + (middle >> word)


def product(machine: Machine, instruction: Instruction) -> Numbers:
    """The low or high half of a product, or all of it; floats have no halves."""
    kind = instruction.type
    a, b = (machine.read(operand, kind) for operand in instruction.operands[1:3])
    if "wide" in instruction.flags or "hi" in instruction.flags:
        if kind == "u64" and "hi" in instruction.flags:
            return high_half(a, b)
        if bits_of(kind) > 32:
            raise PtxError("unsupported width")
        double = np.dtype(f"{a.dtype.kind}{2 * a.itemsize}")
        whole = a.astype(double) * b.astype(double)
        if "wide" in instruction.flags:
            return whole
        return (whole >> double.type(bits_of(kind))).astype(a.dtype)
    return a * b


@implements("mul", "lo", "hi", "wide", "rn")
def multiply(machine: Machine, instruction: Instruction) -> None:
    machine.write(instruction.operands[0], product(machine, instruction))


@implements("mad", "lo", "hi", "wide")
def multiply_add(machine: Machine, instruction: Instruction) -> None:
    values = product(machine, instruction)
    kind = f"{'s' if values.dtype.kind == 'i' else 'u'}{8 * values.itemsize}"
    machine.write(instruction.operands[0], values + machine.read(instruction.operands[3], kind))


@implements("fma", "rn")
def fused_multiply_add(machine: Machine, instruction: Instruction) -> None:
    """In float64, where a product of float32 is exact; the sum is rounded twice, which rarely
    shows in the last bit. In float64 itself the product is rounded too.
    """
    to, *operands = instruction.operands
    kind = instruction.type
    a, b, c = (machine.read(operand, kind).astype(np.float64) for operand in operands)
    machine.write(to, (a * b + c).astype(DTYPES[kind]))


# ---- predicates, moves and conversions

COMPARE: dict[str, Callable[[Numbers, Numbers], Numbers]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "neu": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


# Of floats: false for NaNs but in `neu`.
@implements("setp", *COMPARE)
def set_predicate(machine: Machine, instruction: Instruction) -> None:
    to, a, b = instruction.operands
    (comparison,) = instruction.flags
    kind = instruction.type
    machine.write(to, COMPARE[comparison](machine.read(a, kind), machine.read(b, kind)))


@implements("selp")
def select(machine: Machine, instruction: Instruction) -> None:
    to, a, b, chosen = instruction.operands
    kind = instruction.type
    values = np.where(machine.predicate(chosen), machine.read(a, kind), machine.read(b, kind))
    machine.write(to, values)


@implements("mov")
def move(machine: Machine, instruction: Instruction) -> None:
    """Also takes two registers for the halves of one, and one for two."""
    to, source = instruction.operands
    kind = instruction.type
    half = f"u{bits_of(kind) // 2}"
    if kind == "pred":
        machine.write(to, machine.predicate(source))
    elif source.startswith("{"):
        low, high = (machine.read(part, half) for part in parts(source))
        whole = np.dtype(DTYPES[kind])
        bits = whole.type(bits_of(half))
        machine.write(to, low.astype(whole) | (high.astype(whole) << bits))
    elif to.startswith("{"):
        whole_value = machine.read(source, f"u{bits_of(kind)}").copy()
        bits = whole_value.dtype.type(bits_of(half))
        for k, part in enumerate(parts(to)):
            machine.write(part, (whole_value >> (bits * k)).astype(DTYPES[half]))
    else:
        machine.write(to, machine.read(source, kind))


def as_floats(bits: Numbers, kind: str) -> Numbers:
    """The numbers behind the bits of a 16-bit type."""
    if kind == "f16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def as_bits(values: Numbers, kind: str) -> Numbers:
    """float32 rounded to a 16-bit type, to nearest even; NaN is not expected."""
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    odd = bits >> np.uint32(16) & np.uint32(1)
    return (bits + np.uint32(0x7FFF) + odd >> np.uint32(16)).astype(np.uint16)


@implements("cvt", "rn", "f16", "bf16", *DTYPES)
def convert(machine: Machine, instruction: Instruction) -> None:
    to_kind, from_kind = instruction.flags[-1], instruction.type
    to, source = instruction.operands
    if from_kind in HALVES and to_kind == "f32":
        machine.write(to, as_floats(machine.read(source, "u16"), from_kind))
    elif to_kind in HALVES and from_kind == "f32":
        machine.write(to, as_bits(machine.read(source, "f32"), to_kind))
    elif to_kind in DTYPES and from_kind in DTYPES and is_float(to_kind) == is_float(from_kind):
        machine.write(to, machine.read(source, from_kind).astype(DTYPES[to_kind]))
    else:
        raise PtxError("unsupported conversion")


@implements("cvta", "to", "shared", "global")
def convert_address(machine: Machine, instruction: Instruction) -> None:
    """Addresses of global memory are generic as they are."""
    to, source = instruction.operands
    space = instruction.flags[-1]
    addresses = machine.read(source, "u64")
    window = np.uint64(SHARED_WINDOW if space == "shared" else 0)
    machine.write(to, addresses - window if "to" in instruction.flags else addresses + window)


def check_whole_warps(
    machine: Machine, name: str, limits: list[str], expected: tuple[int, ...]
) -> None:
    """Lanes and segments that an instruction names, and the threads that reach it."""
    for limit, of_whole_warps in zip(limits, expected, strict=True):
        found = np.broadcast_to(machine.read(limit, "s32"), machine.threads)[machine.active]
        if (found != of_whole_warps).any():
            raise PtxError(f"unsupported {name} of less than a warp")
    if not all(machine.active[machine.warp == number].all() for number in machine.active_warps()):
        raise PtxError(f"not all threads of a warp reach the same {name}")


@implements("vote", "sync", "ballot")
def ballot(machine: Machine, instruction: Instruction) -> None:
    """A bit for each lane of the warp whose predicate holds."""
    to, predicate, lanes = instruction.operands
    check_whole_warps(machine, "vote", [lanes], (-1,))
    holds = np.broadcast_to(machine.predicate(predicate), machine.threads)
    ballots = np.packbits(holds.reshape(-1, 32), axis=1, bitorder="little").view("<u4")
    machine.write(to, np.repeat(ballots[:, 0], 32))


@implements("shfl", "sync", "bfly")
def exchange(machine: Machine, instruction: Instruction) -> None:
    """The values of the lanes whose numbers differ in the bits of the third operand."""
    to, source, lane_mask, *limits = instruction.operands
    check_whole_warps(machine, "shuffle", limits, (31, -1))
    values = np.broadcast_to(machine.read(source, "b32"), machine.threads)
    others = np.arange(machine.threads) ^ machine.read(lane_mask, "s32")
    register, _, is_there = to.partition("|")
    machine.write(register, values[others])
    if is_there:
        machine.write(is_there, np.array([True]))


# ---- memory

VECTORS = {"v2": 2, "v4": 4}
SPACES = ("param", "global", "shared")


def space_of(instruction: Instruction) -> str:
    return next((flag for flag in instruction.flags if flag in SPACES), "generic")


def load_parameter(machine: Machine, operand: str, dtype: np.dtype[np.generic], k: int) -> Numbers:
    """Number `k` of those at `[name+offset]`, or at `[register+offset]` where an index decides."""
    name, _, offset = operand.strip("[]").partition("+")
    if name in machine.parameters:
        start = int(offset or 0) + k * dtype.itemsize
        return np.frombuffer(machine.parameters[name], dtype, 1, start)
    memory = machine.parameter_memory
    places = memory.offsets(machine.addresses(operand) + k * dtype.itemsize, dtype.itemsize)
    return machine.spread(memory.load(places, dtype))


@implements("ld", "volatile", "nc", *SPACES, *VECTORS)
def load(machine: Machine, instruction: Instruction) -> None:
    to, source = instruction.operands
    registers = parts(to)
    dtype = np.dtype(DTYPES[instruction.type])
    space = space_of(instruction)
    if space == "param":
        for k, register in enumerate(registers):
            machine.write(register, load_parameter(machine, source, dtype, k))
        return
    size = dtype.itemsize
    memory, offsets = machine.place(machine.addresses(source), space, size * len(registers))
    for k, register in enumerate(registers):
        machine.write(register, machine.spread(memory.load(offsets + k * size, dtype)))


@implements("st", "volatile", "global", "shared", *VECTORS)
def store(machine: Machine, instruction: Instruction) -> None:
    to, source = instruction.operands
    registers = parts(source)
    size = bits_of(instruction.type) // 8
    space = space_of(instruction)
    memory, offsets = machine.place(machine.addresses(to), space, size * len(registers))
    for k, register in enumerate(registers):
        values = np.broadcast_to(machine.read(register, instruction.type), machine.threads)
        memory.store(offsets + k * size, values[machine.active])


@implements("cp", "async", "ca", "cg", "shared")
def copy_async(machine: Machine, instruction: Instruction) -> None:
    operands = instruction.operands
    if instruction.type == "commit_group":
        machine.copies.commit()
    elif instruction.type == "wait_group":
        machine.copies.wait(int(operands[0]))
    elif instruction.type == "global":
        to, source, size = (
            machine.addresses(operands[0]),
            machine.addresses(operands[1]),
            operands[2],
        )
        valid = np.broadcast_to(machine.read(operands[-1], "s32"), machine.threads)
        machine.copies.start(to, source, int(size), valid[machine.active].astype(np.int64))
    else:
        raise PtxError("unsupported cp.async")
