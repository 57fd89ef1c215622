"""Runs one launch of a kernel: threads, their registers, and who steps next.

A register is a NumPy array with one element per thread of the grid. The threads at the lowest
instruction step together, which brings branches together again; threads that wait at a barrier go
on when nobody else can step.
"""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .async_copies import AsyncCopies
from .instructions import DTYPES, bind
from .memory import FIRST_ADDRESS, SHARED_WINDOW, GlobalMemory, Numbers, Offsets, SharedMemory
from .parse import Instruction, Kernel, PtxError

WARP = 32
MAX_STEPS = 3_000_000  # more are taken for an endless loop
ADDRESS = re.compile(r"\[([\w$%]+)(?:\+(-?\d+))?\]")

Lanes = NDArray[np.bool_]
Dim3 = tuple[int, int, int]


class Launch(NamedTuple):
    """What stands between <<< and >>>, and the bytes of the arguments."""

    grid: Dim3
    block: Dim3
    shared_bytes: int
    arguments: tuple[bytes, ...]


class Machine:
    """One launch."""

    def __init__(self, kernel: Kernel, launch: Launch, memory: GlobalMemory) -> None:
        self.kernel = kernel
        self.memory = memory
        block_threads, blocks = int(np.prod(launch.block)), int(np.prod(launch.grid))
        if kernel.max_threads and block_threads > kernel.max_threads:
            raise PtxError(f"{kernel.name}: more threads than __launch_bounds__ says")
        self.threads = blocks * block_threads
        self._set_up_registers(launch)
        self.shared = SharedMemory(blocks, kernel.shared_size + launch.shared_bytes)
        self.copies = AsyncCopies(self)
        self.parameters = dict(zip(kernel.parameters, launch.arguments, strict=True))
        # For those whose address a kernel computes.
        self.parameter_memory = GlobalMemory(1 << 16)
        self.parameter_addresses = {
            name: self.parameter_memory.put(np.frombuffer(argument, np.uint8))
            for name, argument in self.parameters.items()
        }
        self._set_up_schedule()

    def _set_up_registers(self, launch: Launch) -> None:
        numbers = np.arange(self.threads)
        block_threads = int(np.prod(launch.block))
        self.block, in_block = np.divmod(numbers, block_threads)
        self.warp = self.block * -(-block_threads // WARP) + in_block // WARP
        self.registers: dict[str, Numbers] = {
            name: np.zeros(self.threads, DTYPES[kind])
            for name, kind in self.kernel.registers.items()
        }
        for name, rest, sizes in (
            ("tid", in_block, launch.block),
            ("ctaid", self.block, launch.grid),
        ):
            for axis, size in zip("xyz", sizes, strict=True):
                self.registers[f"%{name}.{axis}"] = (rest % size).astype(np.uint32)
                self.registers[f"%n{name}.{axis}"] = np.full(self.threads, size, np.uint32)
                rest = rest // size
        self._reads: dict[tuple[str, str], Numbers] = {}

    def _set_up_schedule(self) -> None:
        self._code = [bind(self, instruction) for instruction in self.kernel.instructions]
        self._meeting_points = set(self.kernel.labels.values())
        self._steps = 0
        self.next = np.zeros(self.threads, np.int64)  # the instruction where each thread stands
        self.ended = np.zeros(self.threads, bool)
        self.waits_for_warp = np.zeros(self.threads, bool)
        self.waits_for_block = np.zeros(self.threads, bool)
        # The threads that execute the current instruction; `where` is the same for NumPy.
        self.active = np.ones(self.threads, bool)
        self.where: Lanes | bool = True

    # ---- stepping

    def run(self) -> None:
        """Steps until every thread has ended."""
        with np.errstate(all="ignore"):
            while not self.ended.all():
                ready = ~(self.ended | self.waits_for_warp | self.waits_for_block)
                if ready.any():
                    position = int(self.next[ready].min())
                    self._run_straight(position, ready & (self.next == position))
                elif self.waits_for_warp.any():
                    self._release(self.waits_for_warp, self.warp, "bar.warp.sync")
                else:
                    self._release(self.waits_for_block, self.block, "bar.sync")

    def _run_straight(self, position: int, lanes: Lanes) -> None:
        """Runs instructions one after another, up to where others may join or threads part."""
        while True:
            instruction = self.kernel.instructions[position]
            self._activate(instruction, lanes)
            position += 1
            try:
                parted = self._execute(position, instruction, lanes)
            except PtxError as error:
                raise PtxError(f"{self.kernel.name}: {error} at `{instruction.text}`") from None
            if parted:
                return
            if position in self._meeting_points:
                self.next[lanes] = position
                return

    def _activate(self, instruction: Instruction, lanes: Lanes) -> None:
        self.active = lanes
        if instruction.guard:
            self.active = lanes & (self.registers[instruction.guard] ^ instruction.negated)
        self.where = True if self.active.all() else self.active
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise PtxError(f"{self.kernel.name}: endless loop")

    def _execute(self, position: int, instruction: Instruction, lanes: Lanes) -> bool:
        """Runs one instruction; `position` is the next one. True if threads may have parted."""
        if instruction.opcode == "bra":
            self.next[lanes] = position
            self.next[self.active] = self.kernel.labels[instruction.operands[0]]
        elif instruction.opcode == "ret":
            self.next[lanes] = position
            self.ended |= self.active
        elif instruction.opcode == "bar":
            self.next[lanes] = position
            self._wait(instruction)
        else:
            if self.active.any():
                self._code[position - 1]()
            return False
        return True

    def _wait(self, instruction: Instruction) -> None:
        if instruction.flags == ("warp",) and instruction.operands == ("-1",):
            self.waits_for_warp |= self.active
        elif not instruction.flags and instruction.operands == ("0",):
            self.waits_for_block |= self.active
        else:
            raise PtxError("unsupported barrier")

    def _release(self, waiting: Lanes, group: Offsets, name: str) -> None:
        """Lets the waiting threads go on; nobody else of their warps or blocks can step."""
        for number in np.unique(group[waiting]):
            members = group == number
            if not waiting[members].all() or len(np.unique(self.next[members])) > 1:
                raise PtxError(f"{self.kernel.name}: not all threads reach the same {name}")
        waiting[:] = False

    def active_warps(self) -> Offsets:
        """Those of which some thread executes the current instruction."""
        return np.unique(self.warp[self.active])

    # ---- operands

    def read(self, operand: str, kind: str) -> Numbers:
        """An operand's value for all threads, or one that they share, as the type `kind`."""
        found = self._reads.get((operand, kind))
        if found is not None:
            return found
        dtype = np.dtype(DTYPES[kind])
        register = self.registers.get(operand)
        if register is None:
            number = self._constant(operand) & ((1 << 8 * dtype.itemsize) - 1)
            value = np.frombuffer(number.to_bytes(dtype.itemsize, sys.byteorder), dtype)
        elif register.itemsize == dtype.itemsize:
            value = register.view(dtype)
        else:  # the low part of a wider register, which is a copy and must not be kept
            return register.view(unsigned(register)).astype(f"u{dtype.itemsize}").view(dtype)
        self._reads[operand, kind] = value
        return value

    def predicate(self, operand: str) -> Numbers:
        """A predicate register, `!` in front of it negates, or a constant."""
        if operand.startswith("!"):
            return ~self.predicate(operand[1:])
        if operand in self.registers:
            return self.registers[operand]
        return np.array([int(operand, 0) != 0])

    def _constant(self, operand: str) -> int:
        """The bits of a number, or of the address of a shared array or a parameter."""
        if operand in self.parameter_addresses:
            return self.parameter_addresses[operand]
        if operand in self.kernel.shared:
            return self.kernel.shared[operand]
        if float_bits := re.fullmatch(r"0([fF][0-9a-fA-F]{8}|[dD][0-9a-fA-F]{16})", operand):
            return int(float_bits[1][1:], 16)
        try:
            return int(operand.removesuffix("U"), 0)
        except ValueError:
            raise PtxError(f"unsupported operand {operand}") from None

    def write(self, operand: str, values: Numbers) -> None:
        """Sets a register in the active threads; a wider one gets the sign or zeros in front."""
        register = self.registers[operand]
        if register.itemsize < values.itemsize:
            raise PtxError(f"{operand} is too narrow")
        kind = values.dtype.kind
        if register.itemsize == values.itemsize:
            register = register.view(values.dtype)
        else:
            register = register.view(f"{'i' if kind == 'i' else 'u'}{register.itemsize}")
        np.copyto(register, values, where=self.where)

    def addresses(self, operand: str) -> Offsets:
        """The active threads' addresses of `[base+offset]`."""
        found = ADDRESS.fullmatch(operand)
        if not found:
            raise PtxError(f"unsupported address {operand}")
        base = found[1]
        kind = f"u{8 * self.registers[base].itemsize}" if base in self.registers else "u64"
        addresses = self.read(base, kind).astype(np.int64) + int(found[2] or 0)
        return np.broadcast_to(addresses, self.threads)[self.active]

    # ---- memory

    def place(
        self, addresses: Offsets, space: str, size: int
    ) -> tuple[GlobalMemory | SharedMemory, Offsets]:
        """Memory and offsets of the active threads' accesses of `size` bytes."""
        if space == "generic":
            in_shared = (addresses >= SHARED_WINDOW) & (addresses < FIRST_ADDRESS)
            if in_shared.any() and not in_shared.all():
                raise PtxError("generic access to shared and global memory at once")
            if in_shared.any():
                addresses, space = addresses - SHARED_WINDOW, "shared"
        if space == "shared":
            return self.shared, self.shared.offsets(addresses, size, self.block[self.active])
        return self.memory, self.memory.offsets(addresses, size)

    def spread(self, values: Numbers) -> Numbers:
        """Values of the active threads as values of all, of which others' are never used."""
        if self.where is True:
            return values
        spread = np.zeros(self.threads, values.dtype)
        spread[self.active] = values
        return spread


def unsigned(register: Numbers) -> str:
    """The unsigned type as wide as a register."""
    return f"u{register.itemsize}"
