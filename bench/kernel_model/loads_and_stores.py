"""Instructions that access memory, constants and special registers."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from .block import Block
from .registers import Array, Read, SassError, operands_of, plain
from .sass import Instruction
from .table import Step, implements

_SHORT = {"U8": ("u1", 1), "S8": ("i1", 1), "U16": ("u2", 2), "S16": ("i2", 2)}
_WIDTHS = {*_SHORT, "64", "128"}
# Caching hints, and the order in which other threads see an access.
_HINTS = {"E", "CONSTANT", "STRONG", "WEAK", "GPU", "CTA", "SYS", "EF", "EL", "NA", "LU"} | {
    f"LTC{size}B" for size in (64, 128, 256)
}
_TERM = re.compile(r"(-?)(?:(U?R\d+|U?RZ)(?:\.(64|U32|X\d+))?|(0x\w+))")


def _size_of(flags: tuple[str, ...]) -> tuple[int, str]:
    """Bytes of an access, and for short ones NumPy's type of what is loaded."""
    for name, (kind, size) in _SHORT.items():
        if name in flags:
            return size, kind
    return (16 if "128" in flags else 8 if "64" in flags else 4), "u4"


def _address(block: Block, operand: str, bits: int) -> Read:
    """What stands in [R2.64+UR4+0x10], as unsigned integers of 64 bits."""
    inner = operand[operand.rindex("[") + 1 : operand.rindex("]")]
    # A uniform register beside a short one holds the whole address.
    has_offset_register = ".U32" in inner
    reads: list[Read] = []
    offset = 0
    for part in inner.replace("+-", "+~").split("+"):
        match = _TERM.fullmatch(plain(part.replace("~", "-")))
        if not match:
            raise SassError(f"unknown address {operand}")
        sign, name, kind, number = match.groups()
        if number:
            offset += int(sign + number, 16)
        elif name in ("RZ", "URZ"):
            pass
        elif kind == "64" or (has_offset_register and name.startswith("UR")):
            reads.append(block.wide(name))
        elif kind and kind.startswith("X"):
            reads.append(_scaled(block.word(name), int(kind[1:])))
        else:
            reads.append(block.word(name))
    shift = np.uint64(offset % (1 << 64))
    mask = np.uint64((1 << bits) - 1)

    def read() -> Array:
        total = np.full((1, 1), shift, np.uint64)
        for one in reads:
            total = total + one()
        return total & mask

    return read


def _scaled(read: Read, by: int) -> Read:
    return lambda: read() * np.uint32(by)


def _lanes(block: Block, read: Read) -> Array:
    """Values of all lanes [warps, 32]."""
    return np.broadcast_to(read(), block.active.shape)


def _writes(block: Block, register: str, size: int) -> list[Callable[[Array], None]]:
    return [block.to_word(register, part) for part in range(max(size // 4, 1))]


def _reads(block: Block, register: str, size: int) -> list[Read]:
    """The words that a store takes, of which RZ has as many as are wanted."""
    match = re.fullmatch(r"R(\d+|Z)", plain(register))
    if not match:
        raise SassError(f"unknown value {register}")
    names = [
        "RZ" if match[1] == "Z" else f"R{int(match[1]) + part}" for part in range(max(size // 4, 1))
    ]
    return [block.word(name) for name in names]


def _spread(block: Block, loaded: Array, kind: str) -> Array:
    """Values of the active lanes as those of all, as 32 bits."""
    values = np.zeros(block.active.shape, np.uint32)
    values[block.active] = loaded.view(kind).astype(np.int64).astype(np.uint32)
    return values


# ---- global memory ------------------------------------------------------------------------------


@implements("LDG", "LD", flags={*_WIDTHS, *_HINTS})
def load_global(block: Block, instruction: Instruction) -> Step:
    register, operand = operands_of(instruction.operands)
    size, kind = _size_of(instruction.flags)
    address = _address(block, operand, 64)
    writes = _writes(block, register, size)

    def step() -> None:
        addresses = _lanes(block, address)[block.active]
        block.record_global(addresses, size, False)
        for part, write in enumerate(writes):
            loaded = block.memory.load(addresses + np.uint64(4 * part), min(size, 4))
            write(_spread(block, loaded, kind))

    return step


@implements("STG", "ST", flags={*_WIDTHS, *_HINTS})
def store_global(block: Block, instruction: Instruction) -> Step:
    operand, register = operands_of(instruction.operands)
    size, _ = _size_of(instruction.flags)
    address = _address(block, operand, 64)
    reads = _reads(block, register, size)

    def step() -> None:
        addresses = _lanes(block, address)[block.active]
        block.record_global(addresses, size, True)
        for part, read in enumerate(reads):
            values = _lanes(block, read)[block.active]
            block.memory.store(addresses + np.uint64(4 * part), values, min(size, 4))

    return step


@implements("ATOMG", "ATOM", "RED", flags={"ADD", "INC", "EXCH", "S32", *_HINTS})
def atomic(block: Block, instruction: Instruction) -> Step:
    """Lane by lane. On 32-bit integers only."""
    operands = list(operands_of(instruction.operands))
    old = None
    if instruction.base != "RED":
        operands.pop(0)  # a predicate
        old = block.to_word(operands.pop(0))
    address = _address(block, operands[0], 64)
    operand = block.word(operands[1])
    (name,) = set(instruction.flags) & {"ADD", "INC", "EXCH"}

    def step() -> None:
        addresses = _lanes(block, address)[block.active]
        block.record_global(addresses, 4, True)
        before = np.zeros(len(addresses), np.uint32)
        for lane, value in enumerate(_lanes(block, operand)[block.active]):
            place = addresses[lane : lane + 1]
            now = before[lane : lane + 1] = block.memory.load(place, 4)
            after = {
                "ADD": now + value,
                "INC": np.where(now >= value, np.uint32(0), now + np.uint32(1)),
                "EXCH": np.full(1, value),
            }[name]
            block.memory.store(place, after, 4)
        if old:
            old(_spread(block, before, "u4"))

    return step


# ---- shared memory ------------------------------------------------------------------------------


@implements("LDS", flags=_WIDTHS)
def load_shared(block: Block, instruction: Instruction) -> Step:
    register, operand = operands_of(instruction.operands)
    size, kind = _size_of(instruction.flags)
    address = _address(block, operand, 32)
    writes = _writes(block, register, size)

    def step() -> None:
        everywhere = _lanes(block, address)
        block.record_shared(everywhere, size)
        addresses = everywhere[block.active]
        for part, write in enumerate(writes):
            loaded = block.shared.load(addresses + np.uint64(4 * part), min(size, 4))
            write(_spread(block, loaded, kind))

    return step


@implements("STS", flags=_WIDTHS)
def store_shared(block: Block, instruction: Instruction) -> Step:
    operand, register = operands_of(instruction.operands)
    size, _ = _size_of(instruction.flags)
    address = _address(block, operand, 32)
    reads = _reads(block, register, size)

    def step() -> None:
        everywhere = _lanes(block, address)
        block.record_shared(everywhere, size)
        addresses = everywhere[block.active]
        for part, read in enumerate(reads):
            values = _lanes(block, read)[block.active]
            block.shared.store(addresses + np.uint64(4 * part), values, min(size, 4))

    return step


@implements("LDGSTS", flags={"BYPASS", "ACCESS", "ZFILL", *_WIDTHS, *_HINTS})
def copy_to_shared(block: Block, instruction: Instruction) -> Step:
    """The copy is made at once: that it is waited for is shown by the emulator.

    Of .ZFILL the predicate says whether anything is read; how many bytes are not stands in the
    address, below the alignment.
    """
    operands = list(operands_of(instruction.operands))
    size, _ = _size_of(instruction.flags)
    to, source = _address(block, operands[0], 32), _address(block, operands[1], 64)
    wanted = block.predicate(operands[2]) if len(operands) > 2 else None
    if (wanted is not None) != ("ZFILL" in instruction.flags):
        raise SassError("a predicate without .ZFILL")
    places = np.arange(size, dtype=np.uint64)

    def step() -> None:
        everywhere = _lanes(block, to)
        addresses = _lanes(block, source)[block.active]
        reading = np.ones(len(addresses), bool)
        if wanted is not None:
            reading = np.broadcast_to(wanted(), block.active.shape)[block.active]
        missing = addresses % np.uint64(size)
        if wanted is None and missing.any():
            raise SassError(f"copy of {size} bytes that is not aligned")
        start = addresses - missing
        data = np.zeros((len(addresses), size), np.uint8)
        data[reading] = block.memory.load(start[reading][:, None] + places, 1)
        data[places[None, :] >= (np.uint64(size) - missing)[:, None]] = 0
        block.shared.store(everywhere[block.active][:, None] + places, data, 1)
        _record_copy(block, start, reading, size, everywhere)

    return step


def _record_copy(block: Block, start: Array, reading: Array, size: int, everywhere: Array) -> None:
    """The reading, with the wavefronts of the writing."""
    warps = block.warp_numbers[block.active][reading]
    traffic = block.memory.traffic(start[reading], size, warps, block.warps)
    wavefronts = block.shared.wavefronts(everywhere, size, block.active)
    block.trace.accesses.append(traffic._replace(wavefronts=wavefronts))


_ORDER = ("LDGDEPBAR", "DEPBAR", "MEMBAR", "ERRBAR", "CCTL", "ENDCOLLECTIVE", "WARPSYNC")
_SCOPES = {"LE", "SC", "ALL", "GPU", "VC", "CTA", "IVALL", "COLLECTIVE"}


@implements(*_ORDER, "NOP", "YIELD", flags=_SCOPES)
def without_effect(block: Block, instruction: Instruction) -> Step:
    """What only matters to other threads, or to the time that is taken."""
    return lambda: None


# ---- constants and special registers ------------------------------------------------------------


@implements("LDC", "ULDC", flags={"64", "U8", "U16"})
def load_constant(block: Block, instruction: Instruction) -> Step:
    register, operand = operands_of(instruction.operands)
    size, _ = _size_of(instruction.flags)
    writes = _writes(block, register, size)
    reads = [block.constant(operand, min(size, 4), part) for part in range(len(writes))]

    def step() -> None:
        values = [read() for read in reads]  # the index may be the result
        for write, value in zip(writes, values, strict=True):
            write(value)

    return step


@implements("S2R", "S2UR")
def load_special(block: Block, instruction: Instruction) -> Step:
    register, name = operands_of(instruction.operands)
    if name not in block.special:
        raise SassError(f"unknown special register {name}")
    write, value = block.to_word(register), block.special[name]
    return lambda: write(value)


@implements("CS2R", flags={"32"})
def zeros(block: Block, instruction: Instruction) -> Step:
    register, name = operands_of(instruction.operands)
    if name != "SRZ":
        raise SassError(f"unknown special register {name}")
    writes = _writes(block, register, 4 if "32" in instruction.flags else 8)
    zero = np.zeros((1, 1), np.uint32)

    def step() -> None:
        for write in writes:
            write(zero)

    return step
