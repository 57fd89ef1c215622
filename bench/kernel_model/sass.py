"""Reads machine code: what `cuobjdump -sass` prints, with the control words, and its loops."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MULTIPLY_ADDS = ("FFMA", "DFMA")
BARRIERS = 6  # scoreboards of a warp
NO_BARRIER = 7
INSTRUCTION_BYTES = 16


@dataclass(frozen=True)
class Control:
    """What the compiler tells the scheduler with each instruction."""

    stall: int = 1  # cycles before the warp's next instruction
    write_barrier: int = NO_BARRIER  # the scoreboard that is released when the result is there
    read_barrier: int = NO_BARRIER  # when the operands have been read
    wait_mask: int = 0  # scoreboards that must be released before it is issued


def decode_control(second_word: int) -> Control:
    """Bits 105 to 121 of an instruction, of which `second_word` holds 64 to 127."""
    bits = second_word >> 41
    return Control(bits & 0xF, bits >> 5 & 7, bits >> 8 & 7, bits >> 11 & 0x3F)


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str  # "@!P0", or "" where it always executes
    opcode: str  # with its modifiers: "LDS.128"
    operands: str
    control: Control = field(default=Control(), compare=False)

    @property
    def base(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def flags(self) -> tuple[str, ...]:
        return tuple(self.opcode.split(".")[1:])

    @property
    def kind(self) -> str:
        """The base opcode; for loads and stores also the width, if it is not 32 bits."""
        width = re.search(r"\.(U?8|S8|U16|S16|64|128)\b", self.opcode)
        memory = self.base in ("LDS", "STS", "LDG", "STG", "LDL", "STL", "LD", "ST")
        return f"{self.base}{width[0]}" if memory and width else self.base

    @property
    def text(self) -> str:
        return " ".join(part for part in (self.predicate, self.opcode, self.operands) if part)


_INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<predicate>@!?U?P\w+)?\s*(?P<opcode>[A-Z][\w.]*)"
    r"\s*(?P<operands>[^;]*?)\s*;"
)
_SECOND_WORD = re.compile(r"^\s*/\* (0x[0-9a-f]{16}) \*/\s*$")


def parse_sass(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    """The architecture and the functions in the output of `cuobjdump -sass` for one cubin."""
    target = re.search(r"^\s*code for (sm_\w+)", text, re.MULTILINE)
    functions: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    last: re.Match[str] | None = None
    for line in text.splitlines():
        if match := re.match(r"\s*Function : (\S+)", line):
            current = functions.setdefault(match[1], [])
        elif match := _INSTRUCTION.match(line):
            last = match
            current.append(_instruction(match, Control()))
        elif last and (match := _SECOND_WORD.match(line)):
            current[-1] = _instruction(last, decode_control(int(match[1], 16)))
            last = None
    return (target[1] if target else "?"), functions


def _instruction(match: re.Match[str], control: Control) -> Instruction:
    address, predicate, opcode, operands = match.group("address", "predicate", "opcode", "operands")
    return Instruction(int(address, 16), predicate or "", opcode, operands, control)


# ---- loops --------------------------------------------------------------------------------------


def _target(instruction: Instruction) -> int | None:
    """Where a branch within the function goes.

    ptxas writes some of sm_80's branches as calls that never return: around one instruction."""
    found = re.findall(r"0x([0-9a-f]+)\s*$", instruction.operands)
    target = int(found[0], 16) if found else None
    skips_one = instruction.base == "CALL" and target == instruction.address + 2 * INSTRUCTION_BYTES
    return target if instruction.base == "BRA" or skips_one else None


def _falls_through(instruction: Instruction) -> bool:
    if instruction.base == "BRA":  # `BRA P1, 0x80` and `BRA.U !UP0, 0x80` are conditional too
        return bool(instruction.predicate) or "," in instruction.operands or _is_rare(instruction)
    ends = instruction.base in ("EXIT", "RET", "BRX", "JMP", "KILL")
    return not ends or bool(instruction.predicate)


def _is_rare(instruction: Instruction) -> bool:
    """A branch for warps whose threads have parted."""
    return "DIV" in instruction.flags


@dataclass
class Block:
    """Instructions that only run together."""

    instructions: list[Instruction]
    successors: list[int]


def blocks_of(function: Sequence[Instruction]) -> dict[int, Block]:
    """The basic blocks by their first address. Calls are taken to return to the next instruction,
    so a subroutine such as the 64-bit division belongs to no loop that calls it."""
    starts = {function[0].address}
    for instruction, following in itertools.pairwise(function):
        target = _target(instruction)
        if target is not None:
            starts.add(target)
        if target is not None or not _falls_through(instruction):
            starts.add(following.address)
    blocks: dict[int, Block] = {}
    for instruction in function:
        if instruction.address in starts:
            block = blocks[instruction.address] = Block([], [])
        block.instructions.append(instruction)
    order = sorted(blocks)
    for start, after in zip(order, [*order[1:], None], strict=True):
        last = blocks[start].instructions[-1]
        ways = [_target(last), after if _falls_through(last) else None]
        blocks[start].successors = [way for way in ways if way in blocks]
    return blocks


def _predecessors(blocks: Mapping[int, Block], entry: int) -> dict[int, set[int]]:
    """For each block that can be reached, those that go to it."""
    predecessors: dict[int, set[int]] = {entry: set()}
    waiting = [entry]
    while waiting:
        block = waiting.pop()
        for successor in blocks[block].successors:
            if successor not in predecessors:
                predecessors[successor] = set()
                waiting.append(successor)
            predecessors[successor].add(block)
    return predecessors


def _dominators(predecessors: Mapping[int, set[int]], entry: int) -> dict[int, set[int]]:
    """For each block, those that every way to it passes."""
    dominators = {block: set(predecessors) for block in predecessors}
    dominators[entry] = {entry}
    changed = True
    while changed:
        changed = False
        for block in sorted(set(predecessors) - {entry}):
            new = set.intersection(*(dominators[way] for way in predecessors[block])) | {block}
            changed |= new != dominators[block]
            dominators[block] = new
    return dominators


def _bodies(blocks: Mapping[int, Block], entry: int) -> dict[int, set[int]]:
    """The blocks of each loop, by the block that it is entered through. Backward branches alone do
    not make a loop: the compiler also moves rare code behind the function's end, from where it
    jumps back."""
    predecessors = _predecessors(blocks, entry)
    dominators = _dominators(predecessors, entry)
    bodies: dict[int, set[int]] = {}
    for block in predecessors:
        for header in dominators[block].intersection(blocks[block].successors):
            body, waiting = bodies.setdefault(header, {header}), [block]
            while waiting:
                member = waiting.pop()
                if member not in body:
                    body.add(member)
                    waiting += predecessors[member]
    return bodies


def loops_of(function: Sequence[Instruction]) -> list[list[Instruction]]:
    """The loops, each without those inside it. Of one that multiplies and adds, the blocks that do:
    what it does besides, such as fetching operands, is often in a block that is rarely executed."""
    blocks = blocks_of(function)
    bodies = list(_bodies(blocks, function[0].address).values())
    loops = []
    for body in bodies:
        own = sorted(body.difference(*(inner for inner in bodies if inner < body)))
        working = [block for block in own if multiply_adds(blocks[block].instructions)]
        loops.append([i for block in working or own for i in blocks[block].instructions])
    return loops


def multiply_adds(loop: Sequence[Instruction]) -> int:
    return sum(i.base in MULTIPLY_ADDS for i in loop)


def main_loop(function: Sequence[Instruction]) -> list[Instruction]:
    """The loop with most multiply-adds, or else with most instructions; [] if there is none."""
    return max(loops_of(function), key=lambda loop: (multiply_adds(loop), len(loop)), default=[])
