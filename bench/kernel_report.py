"""What did the compiler make of the CUDA kernels? Run: python bench/kernel_report.py

Prints, for each kernel and architecture in the built extension (or in the files named): registers,
local memory, stack, static shared memory, and which instructions its main loop consists of. Needs
no GPU, but cuobjdump and nvdisasm (the CUDA toolkit has them, and so has the triton package).
Exit status: 0 all goals met; 1 a kernel uses local memory (it spills), or FFMAs are a smaller share
of a float main loop than MIN_FFMA_SHARE; 2 nothing to report on.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

MIN_FFMA_SHARE = 0.60
# One of each must be in the extension.
GOAL_KERNELS = tuple(
    f"dropconnect::{kernel}"
    for kernel in (
        "forward_kernel<float>",
        "outer_kernel<float, true>",
        "outer_kernel<float, false>",
    )
)
COMPILED_FOR = ("80", "90")  # where a .cu file is named
MULTIPLY_ADDS = ("FFMA", "DFMA")
SHOWN_INSTRUCTIONS = 5


class ReportError(Exception):
    """Why there is no report, in one line."""


# ---- what the disassembler prints ---------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str  # "@!P0", or "" where it always executes
    opcode: str  # with its modifiers: "LDS.128"
    operands: str

    @property
    def base(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def kind(self) -> str:
        """The base opcode; for loads and stores also the width, if it is not 32 bits."""
        width = re.search(r"\.(U?8|S8|U16|S16|64|128)\b", self.opcode)
        memory = self.base in ("LDS", "STS", "LDG", "STG", "LDL", "STL", "LD", "ST")
        return f"{self.base}{width[0]}" if memory and width else self.base


@dataclass(frozen=True)
class Resources:
    registers: int
    stack: int  # bytes, as are the others
    shared: int  # static only: what a launch asks for on top is not in the binary
    local: int


_INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<predicate>@!?U?P\w+)?\s*(?P<opcode>[A-Z][\w.]*)"
    r"\s*(?P<operands>[^;]*?)\s*;"
)


def parse_sass(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    """The architecture and the functions in the output of `cuobjdump -sass` for one cubin."""
    target = re.search(r"^\s*code for (sm_\w+)", text, re.MULTILINE)
    functions: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if match := re.match(r"\s*Function : (\S+)", line):
            current = functions.setdefault(match[1], [])
        elif match := _INSTRUCTION.match(line):
            current.append(
                Instruction(
                    int(match["address"], 16),
                    match["predicate"] or "",
                    match["opcode"],
                    match["operands"],
                )
            )
    return (target[1] if target else "?"), functions


def parse_resources(text: str) -> dict[str, Resources]:
    """The functions in the output of `cuobjdump -res-usage`."""
    pattern = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    return {
        name: Resources(*(int(number) for number in numbers))
        for name, *numbers in re.findall(pattern, text)
    }


# ---- loops --------------------------------------------------------------------------------------


def _target(instruction: Instruction) -> int | None:
    """Where a branch within the function goes."""
    found = re.findall(r"0x([0-9a-f]+)\s*$", instruction.operands)
    return int(found[0], 16) if instruction.base == "BRA" and found else None


def _falls_through(instruction: Instruction) -> bool:
    if instruction.base == "BRA":  # `BRA P1, 0x80` and `BRA.U !UP0, 0x80` are conditional too
        return bool(instruction.predicate) or "," in instruction.operands
    ends = instruction.base in ("EXIT", "RET", "BRX", "JMP", "KILL")
    return not ends or bool(instruction.predicate)


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


def loops_of(function: Sequence[Instruction]) -> list[list[Instruction]]:
    """The innermost loops. Backward branches alone do not make one: the compiler also moves rare
    code behind the function's end, from where it jumps back."""
    blocks = blocks_of(function)
    entry = function[0].address
    predecessors = _predecessors(blocks, entry)
    dominators = _dominators(predecessors, entry)
    bodies: dict[int, set[int]] = {}  # by the block that a loop is entered through
    for block in predecessors:
        for header in dominators[block].intersection(blocks[block].successors):
            body, waiting = bodies.setdefault(header, {header}), [block]
            while waiting:
                member = waiting.pop()
                if member not in body:
                    body.add(member)
                    waiting += predecessors[member]
    innermost = [body for body in bodies.values() if len(body & bodies.keys()) == 1]
    return [[i for block in sorted(body) for i in blocks[block].instructions] for body in innermost]


def main_loop(function: Sequence[Instruction]) -> list[Instruction]:
    """The innermost loop with most multiply-adds, or else with most instructions; [] if none."""

    def weight(loop: Sequence[Instruction]) -> tuple[int, int]:
        return sum(i.base in MULTIPLY_ADDS for i in loop), len(loop)

    return max(loops_of(function), key=weight, default=[])


# ---- the report ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    name: str  # "dropconnect::forward_kernel<float>"
    architecture: str
    resources: Resources
    local_stores: int  # instructions
    local_loads: int
    loop: Counter[str]

    def share(self, kind: str) -> float:
        return self.loop[kind] / max(self.loop.total(), 1)

    def problems(self) -> list[str]:
        """The goals that this kernel misses."""
        missed = []
        if self.local_stores or self.local_loads or self.resources.local:
            missed.append(
                f"uses local memory ({self.local_stores} stores, {self.local_loads} loads)"
            )
        if self.name in GOAL_KERNELS and self.share("FFMA") < MIN_FFMA_SHARE:
            missed.append(
                f"main loop is {self.share('FFMA'):.1%} FFMA, the goal is {MIN_FFMA_SHARE:.0%}"
            )
        return [f"{self.name} for {self.architecture}: {text}" for text in missed]


def short_name(demangled: str) -> str:
    """'op::kernel<float>' of 'void fused_dropout::op::(anonymous namespace)::kernel<float>(...)'"""
    text = demangled.replace("(anonymous namespace)::", "").replace("fused_dropout::", "")
    match = re.match(r"(?:void )?((?:\w+::)*\w+(?:<[^()]*>)?)(?:\(|$)", text)
    return match[1].replace("__nv_bfloat16", "bf16").replace("__half", "fp16") if match else text


def demangle(names: Sequence[str]) -> list[str]:
    """The names as C++ writes them; as they are where there is no c++filt."""
    tool = shutil.which("c++filt")
    if tool is None:
        return list(names)
    return run([tool], text="\n".join(names)).splitlines()


def kernels_of(sass: str, resources: str) -> list[Kernel]:
    """The kernels of one cubin."""
    architecture, functions = parse_sass(sass)
    used = parse_resources(resources)
    names = dict(zip(functions, demangle(list(functions)), strict=True))
    kernels = []
    for mangled, instructions in functions.items():
        counts = Counter(i.base for i in instructions)
        loop = Counter(i.kind for i in main_loop(instructions))
        name = short_name(names[mangled])
        facts = (used[mangled], counts["STL"], counts["LDL"], loop)
        kernels.append(Kernel(name, architecture, *facts))
    return kernels


def table_of(kernels: Iterable[Kernel]) -> Table:
    reserved = "sm_90 and newer reserve 1024 bytes of shared memory"
    table = Table("kernel", title="CUDA kernels", caption=f"main loop: instructions; {reserved}")
    for heading in ("arch", "registers", "local st/ld", "stack", "static shared", "loop", "FMA"):
        table.add_column(heading, justify="right")
    table.add_column("most of the main loop", no_wrap=True)
    before = ""
    for kernel in sorted(kernels, key=lambda k: (k.name, len(k.architecture), k.architecture)):
        resources, mix = kernel.resources, kernel.loop
        share = sum(kernel.share(kind) for kind in MULTIPLY_ADDS)
        table.add_row(
            kernel.name if kernel.name != before else "",
            kernel.architecture,
            str(resources.registers),
            f"{kernel.local_stores}/{kernel.local_loads}",
            str(resources.stack),
            str(resources.shared),
            str(mix.total()),
            f"{share:.1%}" if share > 0.1 else "",
            ", ".join(f"{n} {kind}" for kind, n in mix.most_common(SHOWN_INSTRUCTIONS)),
            style="red" if kernel.problems() else None,
        )
        before = kernel.name
    return table


# ---- files and tools ----------------------------------------------------------------------------


def run(command: Sequence[str | Path], text: str | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(command, input=text, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise ReportError(f"{Path(command[0]).name} failed: {lines[-1]}")
    return done.stdout


def find_tool(name: str) -> str:
    """A program of the CUDA toolkit: on PATH, in CUDA_HOME, or in the triton package."""
    folders = [os.environ.get("PATH", "")]
    if "CUDA_HOME" in os.environ:
        folders.append(str(Path(os.environ["CUDA_HOME"]) / "bin"))
    triton = importlib.util.find_spec("triton")
    for place in (triton and triton.submodule_search_locations) or ():
        folders.append(str(Path(place) / "backends" / "nvidia" / "bin"))
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise ReportError(f"{name} not found; put the CUDA toolkit on PATH or pip install triton")
    return found


def newest_architecture() -> str:
    """The newest one that ptxas knows, such as 'sm_121'."""
    allowed = re.findall(r"'sm_(\d+)'", run([find_tool("ptxas"), "--help"]))
    return f"sm_{max(map(int, allowed))}"


def cubins_of(file: Path, folder: Path, assemble_for: str | None) -> list[Path]:
    """The images in `file`, written to `folder`; its PTX assembled too, where that is asked for."""
    if file.suffix == ".cubin":
        return [file]
    if file.suffix == ".cu":
        fatbin = folder / f"{file.stem}.fatbin"
        images = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in COMPILED_FOR]
        run([find_tool("nvcc"), "-O3", "-std=c++17", "-fatbin", *images, file, "-o", fatbin])
        file = fatbin
    cuobjdump = find_tool("cuobjdump")
    run([cuobjdump, "-xelf", "all", file.resolve()], cwd=folder)
    if assemble_for:
        run([cuobjdump, "-xptx", "all", file.resolve()], cwd=folder)
        for ptx in sorted(folder.glob("*.ptx")):
            cubin = ptx.with_suffix(f".{assemble_for}.cubin")
            run([find_tool("ptxas"), f"-arch={assemble_for}", ptx, "-o", cubin])
    return sorted(folder.glob("*.cubin"))


def built_extension() -> Path:
    """The installed extension module, which need not be importable here."""
    package = importlib.util.find_spec("fused_dropout")
    for place in (package and package.submodule_search_locations) or ():
        for file in Path(place).glob("_C.*"):
            return file
    raise ReportError("fused_dropout's extension is not built (see README.md, 'How to build')")


def kernels_in(file: Path, assemble_for: str | None) -> list[Kernel]:
    """The kernels of a built extension, a .fatbin, a .cubin, or a .cu file that needs no torch."""
    if not file.is_file():
        raise ReportError(f"{file} does not exist")
    cuobjdump = find_tool("cuobjdump")
    with tempfile.TemporaryDirectory() as folder:
        kernels = []
        for cubin in cubins_of(file, Path(folder), assemble_for):
            dump = (run([cuobjdump, option, cubin]) for option in ("-sass", "-res-usage"))
            kernels += kernels_of(*dump)
    if not kernels:
        raise ReportError(f"{file.name} holds no CUDA kernels")
    return kernels


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "files", nargs="*", type=Path, help="default: the built extension, with all goal kernels"
    )
    parser.add_argument(
        "--newest",
        action="store_true",
        help="also assemble the PTX in a file, as a driver would, for the newest GPU ptxas knows",
    )
    args = parser.parse_args(argv)
    try:
        assemble_for = newest_architecture() if args.newest else None
        files = args.files or [built_extension()]
        kernels: list[Kernel] = []
        for kernel in itertools.chain(*(kernels_in(file, assemble_for) for file in files)):
            if kernel not in kernels:  # two source files may hold the same one
                kernels.append(kernel)
    except ReportError as error:
        print(f"kernel_report.py: error: {error}", file=sys.stderr)
        return 2
    problems = [problem for kernel in kernels for problem in kernel.problems()]
    if not args.files:
        present = {kernel.name for kernel in kernels}
        absent = [name for name in GOAL_KERNELS if name not in present]
        problems += [f"{name}: not in the extension" for name in absent]
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table_of(kernels))
    for problem in problems:
        console.print(f"[red]missed[/]  {problem}", highlight=False)
    if not problems:
        console.print(f"{len(kernels)} kernels: no local memory, goals met", highlight=False)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
