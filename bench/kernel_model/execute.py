"""Executes machine code: one block of a launch, all warps together as far as they agree.

Of the threads at the lowest instruction those step together that have not parted. Threads of a
warp that have parted at a branch meet where the compiler says so (BSSY names the threads, BSYNC
waits for them; WARPSYNC), so that each warp issues as many instructions as on a GPU. Instructions are executed as written; their latency, and so the waits in
the control words, are the simulator's business (simulate.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# These fill the table of instructions.
from . import floats, integers, loads_and_stores  # noqa: F401
from .block import Block, Launch, Trace
from .memory import GlobalMemory
from .registers import WARP, Array, Read, SassError, operands_of
from .sass import INSTRUCTION_BYTES, Instruction
from .table import Step, step_of

MEMORY = {"LDG", "LD", "STG", "ST", "LDS", "STS", "LDGSTS", "ATOMG", "ATOM", "RED"}
MAX_RUNS = 20_000_000  # more are taken for an endless loop
BY_MASK = 16  # where WARPSYNC meets, beside the 16 of BSYNC
_NOWHERE = 1 << 30
_BITS = np.uint32(1) << np.arange(WARP, dtype=np.uint32)

Code = Mapping[str, Sequence[Instruction]]


def _lane_bits(lanes: Array) -> Array:
    """For each warp, a bit for each of the lanes."""
    bits: Array = np.where(lanes, _BITS, np.uint32(0)).sum(axis=1, keepdims=True, dtype=np.uint32)
    return bits


class _Guard(NamedTuple):
    read: Read
    always: bool


class Machine:
    """One block and its code. `run` executes it to the end."""

    def __init__(
        self, code: Sequence[Instruction], launch: Launch, number: int, memory: GlobalMemory
    ) -> None:
        self.code = code
        self.name = launch.kernel.name
        self.block = Block(launch, number, memory)
        shape = self.block.active.shape
        self.position = np.zeros(shape, np.int64)  # the instruction where each thread stands
        self.ended = ~self.block.exists
        self.barrier = np.full(shape, -1)  # the block-wide barrier that a thread waits at, or -1
        self.meeting = np.full(shape, -1)  # the same for BSYNC
        # Who meets there, as each thread knows it.
        self.groups = np.zeros((BY_MASK + 1, *shape), np.uint32)
        self.party = np.zeros(shape, np.int64)  # those of a warp with the same number step together
        self._parties = 1
        self._parted = False
        self._guards = [self._guard(instruction) for instruction in code]
        self._control: dict[int, Callable[[Array], None]] = {}
        self._steps: list[Step | None] = []
        for index, instruction in enumerate(code):
            jump = self._jump(index, instruction)
            if jump:
                self._control[index] = jump
                self._steps.append(None)
            else:
                self._steps.append(self._step(instruction))
        self._is_memory = [instruction.base in MEMORY for instruction in code]

    def _step(self, instruction: Instruction) -> Step:
        try:
            return step_of(self.block, instruction)
        except SassError as error:
            raise SassError(f"{self.name}: {error}") from None

    def _guard(self, instruction: Instruction) -> _Guard:
        operand = instruction.predicate.removeprefix("@") or "PT"
        return _Guard(self.block.predicate(operand), operand in ("PT", "UPT"))

    # ---- stepping

    def run(self) -> Trace:
        """Executes the block to its end; what its warps have executed."""
        with np.errstate(all="ignore"):
            for _ in range(MAX_RUNS):
                ready = ~self.ended & (self.barrier < 0) & (self.meeting < 0)
                if ready.any():
                    self._run_lowest(ready)
                elif self.ended.all():
                    return self.block.trace
                elif not self._release_barrier():
                    raise SassError(f"{self.name}: threads wait for others that never come")
        raise SassError(f"{self.name}: endless loop")

    def _run_lowest(self, ready: Array) -> None:
        """Executes from the lowest instruction on, up to where threads may part or meet."""
        places = np.where(ready, self.position, _NOWHERE)
        first = position = int(places.min())
        lanes = places == position
        if self._parted:  # one party of each warp
            party = np.where(lanes, self.party, _NOWHERE)
            lanes = lanes & (party == party.min(axis=1, keepdims=True))
        others = places[places > position]
        end = int(others.min()) if others.size else _NOWHERE
        block, steps, guards = self.block, self._steps, self._guards
        everyone = bool(lanes.all())
        try:
            while position < end:
                step = steps[position]
                if step is None:
                    self.position[lanes] = position
                    self._control[position](lanes)
                    position += 1
                    return
                read, always = guards[position]
                if always:
                    block.active, block.everyone = lanes, everyone
                    step()
                else:
                    active = lanes & read()
                    if active.any():
                        block.set_active(active)
                        step()
                    elif self._is_memory[position]:
                        block.record_nothing()
                position += 1
            self.position[lanes] = position
        except SassError as error:
            raise SassError(f"{self.name}: {error} at `{self.code[position].text}`") from None
        finally:
            block.trace.runs.append((first, position, lanes.any(axis=1)))

    # ---- control flow

    def _jump(self, index: int, instruction: Instruction) -> Callable[[Array], None] | None:
        """What a control instruction does to the threads that reach it; None for others."""
        operands = operands_of(instruction.operands)
        name = instruction.base
        if name == "BRA":
            return self._branch(instruction)
        if name == "EXIT":
            return self._exit
        if name == "CALL":
            target = self._index(int(operands[0], 16))
            return lambda lanes: self._go(lanes, np.full(lanes.shape, target))
        if name == "RET":
            register, base = operands[0].split()
            return self._return(register, int(base, 16))
        if name == "BRX":
            register, base = operands[0].split()
            after = self.code[index].address + INSTRUCTION_BYTES
            return self._return(register, after + int(base, 16))
        if name == "BAR":
            if "SYNC" not in instruction.flags or len(operands) != 1:
                raise SassError(f"{self.name}: unknown barrier `{instruction.text}`")
            number = int(operands[0], 16)
            return lambda lanes: self._wait(lanes, number)
        if name == "BSSY":
            return self._open_group(int(operands[0][1:]))
        if name == "BSYNC":
            return self._meet(int(operands[0][1:]))
        if name == "BREAK":
            return self._leave_group(int(operands[-1][1:]))
        if name == "WARPSYNC":
            return self._meet_by_mask(instruction)
        return None

    def _index(self, address: int) -> int:
        index = address // INSTRUCTION_BYTES
        if not 0 <= index < len(self.code):
            raise SassError(f"{self.name}: jump to {address:#x}, outside of the function")
        return index

    def _taken(self, lanes: Array) -> Array:
        """Those of the threads for which the guard of their instruction holds."""
        index = int(self.position[lanes][0])
        taken: Array = lanes & self._guards[index].read()
        return taken

    def _go(self, lanes: Array, targets: Array) -> None:
        """Sends threads to their targets where the guard holds, the others on."""
        taken = self._taken(lanes)
        self.position[lanes] += 1
        np.copyto(self.position, targets, where=taken)
        self._part(lanes)

    def _branch(self, instruction: Instruction) -> Callable[[Array], None]:
        *conditions, place = operands_of(instruction.operands)
        target = self._index(int(place, 16))
        if "DIV" in instruction.flags:
            return self._branch_of_parted(target)
        read = self.block.predicate(conditions[0]) if conditions else None

        def go(lanes: Array) -> None:
            taken = self._taken(lanes)
            if read:
                taken = taken & read()
            self.position[lanes] += 1
            self.position[taken] = target
            self._part(lanes)

        return go

    def _part(self, lanes: Array) -> None:
        """New parties for those threads of a warp that have gone another way than its first."""
        places = np.where(lanes, self.position, _NOWHERE)
        own_way = lanes & (places != places.min(axis=1, keepdims=True))
        while own_way.any():
            places = np.where(own_way, self.position, _NOWHERE)
            together = own_way & (places == places.min(axis=1, keepdims=True))
            self.party[together] = self._parties
            self._parties += 1
            self._parted = True
            own_way &= ~together

    def _branch_of_parted(self, target: int) -> Callable[[Array], None]:
        def go(lanes: Array) -> None:
            parted = lanes.any(axis=1) & (lanes != (~self.ended)).any(axis=1)
            if parted.any():
                raise SassError("threads of a warp have parted before a shuffle")
            self.position[lanes] += 1

        return go

    def _return(self, register: str, base: int) -> Callable[[Array], None]:
        read = self.block.word(register)

        def go(lanes: Array) -> None:
            addresses = read().astype(np.int64).astype(np.int32).astype(np.int64) + base
            for address in np.unique(np.broadcast_to(addresses, lanes.shape)[lanes]):
                self._index(int(address))
            self._go(lanes, np.broadcast_to(addresses // INSTRUCTION_BYTES, lanes.shape))

        return go

    def _exit(self, lanes: Array) -> None:
        taken = self._taken(lanes)
        self.position[lanes] += 1
        self.ended |= taken
        self._release_meetings()
        self._look_for_parties()

    # ---- threads that wait for each other

    def _wait(self, lanes: Array, number: int) -> None:
        taken = self._taken(lanes)
        self.position[lanes] += 1
        self.barrier[taken] = number

    def _release_barrier(self) -> bool:
        """Lets all threads of the block go on from one barrier."""
        waiting = ~self.ended
        if not (self.barrier[waiting] == self.barrier[waiting][0]).all():
            return False
        if (self.barrier[waiting] < 0).any():
            return False
        self.barrier[:] = -1
        return True

    def _open_group(self, number: int) -> Callable[[Array], None]:
        def go(lanes: Array) -> None:
            np.copyto(self.groups[number], _lane_bits(lanes), where=lanes)
            self.position[lanes] += 1

        return go

    def _leave_group(self, number: int) -> Callable[[Array], None]:
        def go(lanes: Array) -> None:
            taken = self._taken(lanes)
            self.groups[number] &= ~_lane_bits(taken)
            self.position[lanes] += 1
            self._release_meetings()

        return go

    def _meet(self, number: int) -> Callable[[Array], None]:
        def go(lanes: Array) -> None:
            taken = self._taken(lanes)
            missing = self.groups[number] & ~_lane_bits(taken | self.ended)
            self.position[lanes] += 1
            if (missing[taken] == 0).all():
                return  # nobody else is waiting: all are one party
            self.meeting[taken] = number
            self._release_meetings()

        return go

    def _meet_by_mask(self, instruction: Instruction) -> Callable[[Array], None]:
        """WARPSYNC of the whole warp, or of the lanes in a mask."""
        meet = self._meet(BY_MASK)
        operands = operands_of(instruction.operands)
        if "COLLECTIVE" in instruction.flags:  # behind a branch of parted threads
            return self._branch_of_parted(0)
        mask = self.block.word(operands[0] if operands else "0xffffffff")

        def go(lanes: Array) -> None:
            np.copyto(self.groups[BY_MASK], mask(), where=lanes)
            meet(lanes)

        return go

    def _release_meetings(self) -> None:
        """Lets those go on for whom nobody is missing any more."""
        for number in np.unique(self.meeting[self.meeting >= 0]):
            waiting = self.meeting == number
            there = _lane_bits(waiting | self.ended)
            released = waiting & ((self.groups[number] & ~there) == 0)
            self.meeting[released] = -1
            for warp in np.flatnonzero(released.any(axis=1)):
                self.party[warp, released[warp]] = self.party[warp, released[warp]].min()
        self._look_for_parties()

    def _look_for_parties(self) -> None:
        """Is any warp parted?"""
        most = np.where(self.ended, -1, self.party).max(axis=1)
        least = np.where(self.ended, _NOWHERE, self.party).min(axis=1)
        self._parted = bool((most > least).any())


def execute(code: Code, launch: Launch, number: int, memory: GlobalMemory) -> Trace:
    """Executes block `number` of a launch."""
    memory.forget_accesses()
    return Machine(code[launch.kernel.name], launch, number, memory).run()
