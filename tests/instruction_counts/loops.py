"""The instructions of a kernel's main loops, as they stand in compiled code.

A main loop is one with the most of the instructions that do the kernel's work, such as
multiply-adds, among all innermost loops of its function and of those that it calls.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(?:(?:lock|rep|repz|bnd|notrack) )*(\S+)\s*(.*)$")
TARGET = re.compile(r"^([0-9a-f]+) <([^+>]+)(?:\+0x[0-9a-f]+)?>")
MEMORY = re.compile(r"\((?:%|,)")

# What an instruction counts as: the first that fits. Moves are loads, stores or, without memory,
# others.
KINDS = (
    ("multiply-add", re.compile(r"^vfn?m(add|sub)")),
    ("32-bit product", re.compile(r"^(vpmuludq|mul|imul|mulx)")),
    ("mask load", re.compile(r"^kmov")),
    ("branch", re.compile(r"^j")),
    ("move", re.compile(r"^v?(mov|broadcast|pmov|pbroadcast|cvtph2ps)")),
)
KIND_NAMES = ("multiply-add", "32-bit product", "mask load", "branch", "load", "store", "other")


class Instruction(NamedTuple):
    address: int
    mnemonic: str
    operands: str

    @property
    def kind(self) -> str:
        fitting = (name for name, pattern in KINDS if pattern.match(self.mnemonic))
        name = next(fitting, "other")
        if name != "move":
            return name
        if not MEMORY.search(self.operands):
            return "other"
        return "store" if self.operands.rstrip().endswith(")") else "load"


@dataclass
class Function:
    """Its instructions, and the symbols of the functions that it calls or jumps to."""

    name: str  # demangled
    instructions: list[Instruction] = field(default_factory=list)
    calls: set[str] = field(default_factory=set)


def output_of(*command: str, given: str | None = None) -> str:
    """What a program of binutils prints."""
    assert shutil.which(command[0]), f"{command[0]} is part of binutils, which compilers need"
    done = subprocess.run(command, input=given, check=True, capture_output=True, text=True)
    return done.stdout


def disassembled(library: Path) -> dict[str, Function]:
    """All functions of a library, by symbol."""
    functions: dict[str, Function] = {}
    current = Function("")
    for line in output_of("objdump", "-d", "--no-show-raw-insn", str(library)).splitlines():
        if found := FUNCTION.match(line):
            current = functions.setdefault(found[1], Function(""))
        elif found := INSTRUCTION.match(line):
            instruction = Instruction(int(found[1], 16), found[2], found[3])
            current.instructions.append(instruction)
            if instruction.mnemonic[0] in "jc" and (target := TARGET.match(instruction.operands)):
                current.calls.add(target[2])
    names = output_of("c++filt", given="\n".join(functions)).splitlines()
    for function, name in zip(functions.values(), names, strict=True):
        function.name = name
    return functions


def innermost_loops(function: Function) -> Iterator[list[Instruction]]:
    """From the target of each jump backwards to the jump, where no other such loop is inside."""
    first = function.instructions[0].address if function.instructions else 0
    loops = []
    for instruction in function.instructions:
        target = TARGET.match(instruction.operands)
        if instruction.mnemonic.startswith("j") and target:
            begin = int(target[1], 16)
            if first <= begin <= instruction.address:
                loops.append((begin, instruction.address))
    for begin, end in loops:
        if not any((a, b) != (begin, end) and begin <= a and b <= end for a, b in loops):
            yield [i for i in function.instructions if begin <= i.address <= end]


def reachable(functions: dict[str, Function], symbol: str) -> set[str]:
    """A function and all that it calls."""
    found, new = set(), {symbol}
    while new:
        found |= new
        new = {c for s in new for c in functions[s].calls if c in functions} - found
    return found


def main_loops(functions: dict[str, Function], kernel: str, work: str) -> Counter[str]:
    """How many instructions of each kind the main loops of a kernel have.

    Args:
        functions: of the library.
        kernel: its name, and those of the namespaces in fused_dropout.
        work: the kind of instruction that does the work.
    """
    *namespaces, name = kernel.split("::")
    full = "::".join(["fused_dropout", *namespaces, "(anonymous namespace)", name]) + "("
    matching = [symbol for symbol, function in functions.items() if full in function.name]
    assert matching, f"the library has no function {full}: name another one in MAIN_LOOPS"
    symbols = set().union(*(reachable(functions, symbol) for symbol in matching))
    mixes = [
        Counter(instruction.kind for instruction in loop)
        for symbol in symbols
        for loop in innermost_loops(functions[symbol])
    ]
    most = max((mix[work] for mix in mixes), default=0)
    assert most > 0, f"no loop of {full} has a {work}"
    return sum((mix for mix in mixes if mix[work] == most), Counter())
