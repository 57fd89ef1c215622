"""Reads the PTX text that nvcc emits: kernels, their parameters, registers and instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


class PtxError(Exception):
    """PTX that cannot be run here, or a kernel that did what it must not."""


@dataclass(frozen=True)
class Instruction:
    """`@!%p1 ld.shared.v4.f32 {...}, [%r1]`: guard %p1, negated, opcode ld, flags shared and v4,
    type f32 (the last part of the name) and two operands.
    """

    text: str
    guard: str
    negated: bool
    opcode: str
    flags: tuple[str, ...]
    type: str
    operands: tuple[str, ...]


@dataclass
class Kernel:
    """One `.entry`."""

    name: str
    parameters: dict[str, int]  # size in bytes, in the order of the declaration
    max_threads: int | None  # what __launch_bounds__ promised
    registers: dict[str, str] = field(default_factory=dict)  # type, without the dot
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # index into `instructions`
    shared: dict[str, int] = field(default_factory=dict)  # offset in bytes
    shared_size: int = 0

    def add_shared(self, name: str, alignment: int, size: int) -> None:
        """Puts an array behind those that are there already."""
        self.shared[name] = -(-self.shared_size // alignment) * alignment
        self.shared_size = self.shared[name] + size


SHARED = re.compile(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d*)\]")
ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{(.*?)^\}", re.S | re.M)
PARAMETER = re.compile(r"\.param\b.*?\.[a-z](\d+)\b.*?\s([\w$]+)(?:\[(\d+)\])?$", re.S)
STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([\w.]+)\s*(.*)", re.S)
# A label, a brace, or anything up to a semicolon.
PIECE = re.compile(r"\s*(?:([$\w]+):|([{}])|([^;]+);)")


def split_operands(text: str) -> tuple[str, ...]:
    """Operands parted by the commas that stand outside braces."""
    return tuple(part.strip() for part in re.split(r",(?![^{]*\})", text) if part.strip())


def parse_parameters(text: str) -> dict[str, int]:
    """Name and size of each parameter."""
    sizes = {}
    for declaration in filter(None, (part.strip() for part in text.split(","))):
        found = PARAMETER.match(declaration)
        if not found:
            raise PtxError(f"not a parameter: {declaration}")
        bits, name, count = found.groups()
        sizes[name] = int(bits) // 8 * int(count or 1)
    return sizes


def parse_instruction(text: str) -> Instruction:
    found = STATEMENT.fullmatch(text)
    if not found:
        raise PtxError(f"not an instruction: {text}")
    negation, guard, name, operands = found.groups()
    opcode, *rest = name.split(".")
    *flags, kind = rest or [""]
    return Instruction(
        " ".join(text.split()),
        guard or "",
        bool(negation),
        opcode,
        tuple(flags),
        kind,
        split_operands(operands),
    )


def add_registers(kernel: Kernel, declaration: str) -> None:
    """`.reg .b32 %r<17>` declares %r0 to %r16, `.reg .b32 t` only t."""
    _, kind, names = declaration.split(None, 2)
    for name in split_operands(names):
        family = re.fullmatch(r"(%?\w+)<(\d+)>", name)
        declared = [f"{family[1]}{k}" for k in range(int(family[2]))] if family else [name]
        for register in declared:
            if kernel.registers.setdefault(register, kind[1:]) != kind[1:]:
                raise PtxError(f"{kernel.name}: register {register} has two types")


def add_statement(kernel: Kernel, text: str) -> None:
    """Takes in a declaration or an instruction."""
    if text.startswith(".reg"):
        add_registers(kernel, text)
    elif shared := SHARED.match(text):
        kernel.add_shared(shared[2], int(shared[1]), int(shared[3]))
    elif text.startswith(".pragma"):
        pass
    elif text.startswith("."):
        raise PtxError(f"{kernel.name}: unsupported declaration: {text}")
    else:
        kernel.instructions.append(parse_instruction(text))


def parse_body(kernel: Kernel, body: str) -> None:
    # A statement that starts with a brace is a scope; a brace further on belongs to an operand.
    position = 0
    while piece := PIECE.match(body, position):
        position = piece.end()
        label, _, statement = piece.groups()
        if label:
            kernel.labels[label] = len(kernel.instructions)
        elif statement:
            add_statement(kernel, statement.strip())
    if body[position:].strip():
        raise PtxError(f"{kernel.name}: cannot read {body[position:].strip()[:60]!r}")


def parse_kernel(entry: re.Match[str], module_shared: list[tuple[str, ...]]) -> Kernel:
    """`module_shared`: alignment, name and size of the arrays declared outside of kernels."""
    name, parameters, directives, body = entry.groups()
    threads = re.search(r"\.maxntid\s+(\d+)", directives)
    kernel = Kernel(name, parse_parameters(parameters), int(threads[1]) if threads else None)
    for alignment, symbol, size in module_shared:
        if size and symbol in body:
            kernel.add_shared(symbol, int(alignment), int(size))
    parse_body(kernel, body)
    for alignment, symbol, size in module_shared:
        if not size:  # extern: starts where the kernel's own arrays end
            kernel.add_shared(symbol, int(alignment), 0)
    return kernel


def parse(text: str) -> dict[str, Kernel]:
    """All kernels of a PTX file by name."""
    text = re.sub(r"//[^\n]*", "", text)
    module_shared = SHARED.findall(ENTRY.sub("", text))
    kernels = (parse_kernel(entry, module_shared) for entry in ENTRY.finditer(text))
    return {kernel.name: kernel for kernel in kernels}
